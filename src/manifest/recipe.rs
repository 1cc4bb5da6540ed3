//! The recipe of a bundle: which files it consists of, where each comes from, and under which licence.
//!
//! It is the `MANIFEST.toml` of the source tree. The list of a sealed bundle is made from it, with sizes and digests.

use std::collections::BTreeSet;

use serde::Deserialize;
use toml::Spanned;

use super::{ENTRIES_MAX, FileRole, MANIFEST_BYTES_MAX, ManifestError, check_name, line_and_what, line_at, path};

/// The newest layout of recipes that this program reads.
pub const RECIPE_FORMAT: u32 = 1;
/// The longest source or licence, in bytes.
const TEXT_BYTES_MAX: usize = 300;

/// Where a piece of a bundle comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A file of the source tree, as a path below the recipe.
    Tree(String),
    /// The program, compiled for this target.
    Build(String),
    /// A file of a package of the Python index, `NAME==VERSION/PATH`: to be imported, or to lie beside a program.
    Pypi(String),
}

/// One piece of a bundle.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// Where it goes: the path of a file, or of a folder without the `/` at its end.
    pub path: String,
    /// Whether it is a folder, whose files are known only when the source has been imported.
    pub is_folder: bool,
    /// What it is there for.
    pub role: FileRole,
    /// Where it comes from.
    pub source: Source,
    /// Its licence, as an SPDX expression.
    pub licence: String,
}

/// What a bundle is made from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recipe {
    /// What the bundle is, such as `Tiles`.
    pub product: String,
    /// The pieces, in the order of the text.
    pub pieces: Vec<Piece>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wire {
    recipe: Spanned<u32>,
    product: Spanned<String>,
    #[serde(default)]
    file: Vec<WirePiece>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WirePiece {
    path: Spanned<String>,
    role: Spanned<String>,
    source: Spanned<String>,
    licence: Spanned<String>,
}

impl Recipe {
    /// Reads the text of a recipe.
    ///
    /// # Errors
    /// [`ManifestError::InvalidRecipe`] with the first wrong line, and [`ManifestError::TooLarge`].
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        let bytes = text.len() as u64;
        if bytes > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes });
        }
        let wire: Wire = toml::from_str(text).map_err(|e| {
            let (line, what) = line_and_what(text, &e);
            ManifestError::InvalidRecipe { line, what }
        })?;
        if *wire.recipe.get_ref() != RECIPE_FORMAT {
            return Err(wrong(text, &wire.recipe, format!("`recipe` isn't {RECIPE_FORMAT}")));
        }
        check_name(wire.product.get_ref()).map_err(|what| wrong(text, &wire.product, format!("`product` {what}")))?;
        if wire.file.len() > ENTRIES_MAX {
            return Err(wrong(text, &wire.product, format!("more than {ENTRIES_MAX} files are listed")));
        }
        let mut pieces = Vec::new();
        let mut paths = BTreeSet::new();
        for wire in &wire.file {
            let piece = parse_piece(text, wire)?;
            if !paths.insert(piece.path.to_ascii_lowercase()) {
                return Err(wrong(text, &wire.path, format!("`{}` is listed twice", piece.path)));
            }
            pieces.push(piece);
        }
        Ok(Self { product: wire.product.into_inner(), pieces })
    }
}

fn parse_piece(text: &str, wire: &WirePiece) -> Result<Piece, ManifestError> {
    let whole = wire.path.get_ref();
    let (path, is_folder) = whole.strip_suffix('/').map_or((whole.as_str(), false), |folder| (folder, true));
    path::check(path).map_err(|e| wrong(text, &wire.path, e.to_string()))?;
    let role = FileRole::from_name(wire.role.get_ref())
        .ok_or_else(|| wrong(text, &wire.role, format!("`{path}` has an unknown role")))?;
    for value in [&wire.source, &wire.licence] {
        let text_of = value.get_ref();
        let plain = text_of.bytes().all(|byte| (b' '..=b'~').contains(&byte));
        if text_of.is_empty() || text_of.len() > TEXT_BYTES_MAX || !plain {
            return Err(wrong(text, value, format!("`{path}`: 1 to {TEXT_BYTES_MAX} plain characters are expected")));
        }
    }
    let source = match wire.source.get_ref().split_once(':') {
        Some(("tree", file)) if !is_folder => {
            path::check_below(file).map_err(|e| wrong(text, &wire.source, e.to_string()))?;
            Source::Tree(file.into())
        }
        Some(("build", target)) if !is_folder && !target.is_empty() => Source::Build(target.into()),
        Some(("pypi", file)) if (is_folder || path.starts_with("bin/")) && file.contains("==") => {
            Source::Pypi(file.into())
        }
        _ => {
            let what = format!(
                "`{path}`: `tree:FILE` or `build:TARGET` is expected, or `pypi:NAME==VERSION/FILE` for a model's folder and beside a program"
            );
            return Err(wrong(text, &wire.source, what));
        }
    };
    if is_folder && (role != FileRole::Model || path.split('/').count() != 2 || !path.starts_with("models/")) {
        return Err(wrong(text, &wire.path, format!("`{path}/`: only `models/NAME/` can be a folder")));
    }
    Ok(Piece { path: path.into(), is_folder, role, source, licence: wire.licence.get_ref().clone() })
}

fn wrong<T>(text: &str, at: &Spanned<T>, what: String) -> ManifestError {
    ManifestError::InvalidRecipe { line: line_at(text, at.span().start), what }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_recipe_of_this_tree_is_right() {
        let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
        let text = std::fs::read_to_string(root.join("MANIFEST.toml")).expect("the tree has one");
        let recipe = Recipe::parse(&text).expect("it is right");
        for piece in &recipe.pieces {
            match &piece.source {
                Source::Tree(file) => assert!(root.join(file).is_file(), "{file}"),
                Source::Build(_) => {
                    let host = piece.path.strip_prefix("bin/").and_then(|rest| rest.strip_suffix("/tiles"));
                    assert!(matches!(host, Some("linux-arm64" | "linux-x86_64" | "macos-arm64")), "{}", piece.path);
                }
                Source::Pypi(_) => assert!(piece.is_folder || piece.path.starts_with("bin/macos-arm64/")),
            }
        }
        assert!(!text.contains("://"), "a recipe has no addresses");
    }

    #[test]
    fn a_wrong_recipe_is_refused_with_its_line() {
        let good = r#"recipe = 1
product = "Tiles"

[[file]]
path = "models/m/"
role = "model"
source = "pypi:x==1/m.gguf"
licence = "MIT"
"#;
        Recipe::parse(good).expect("the unchanged recipe is right");
        for (from, to, expected) in [
            ("recipe = 1", "recipe = 2", "line 1 of the recipe: `recipe` isn't 1"),
            ("recipe = 1\n", "", "missing field `recipe`"),
            ("licence", "license", "line 8 of the recipe: unknown field `license`"),
            ("role = \"model\"", "role = \"doc\"", "line 5 of the recipe: `models/m/`: only"),
            ("models/m/", "bin/m/", "line 5 of the recipe: `bin/m/`: only"),
            ("models/m/", "../m/", "line 5 of the recipe: `../m` isn't a plain path"),
            ("models/m/", "data/m/", "belongs to the person"),
            ("pypi:x==1/m.gguf", "tree:m", "line 7 of the recipe: `models/m`: `tree:FILE`"),
            ("pypi:x==1/m.gguf", "x", "line 7 of the recipe"),
            ("MIT", "", "line 8 of the recipe: `models/m`: 1 to 300"),
            (
                "MIT\"\n",
                "MIT\"\n[[file]]\npath = \"Models/M\"\nrole = \"doc\"\nsource = \"tree:a\"\nlicence = \"MIT\"\n",
                "listed twice",
            ),
        ] {
            assert!(good.contains(from), "{from}");
            let error = Recipe::parse(&good.replacen(from, to, 1)).expect_err(expected).to_string();
            assert!(error.contains(expected), "`{error}` instead of `{expected}`");
        }
    }
}
