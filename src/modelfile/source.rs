//! What `FROM` names: a model of the bundle, one imported from somewhere, or a file.

/// What `FROM` names. Which of these it is shows in the text alone; whether it exists is not asked here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// The name of a model in the bundle: letters, digits and `.`, `_`, `-`, `+`, `:`.
    Name(String),
    /// A folder, a `.gguf` or a `.safetensors` file, relative to the Modelfile unless it is absolute.
    Path(String),
    /// The bundle's model of this identity, `mir:model.art.gpt-oss`; checked where it is resolved.
    Mir(String),
    /// The bundle's model that was imported from `org/name`.
    Hub {
        /// The organisation.
        org: String,
        /// The name within it.
        name: String,
    },
}

impl Source {
    /// Tells what `text` names. A folder that could be mistaken for a name or for `org/name` is written with `./`.
    pub fn of(text: &str) -> Self {
        let lower = text.to_ascii_lowercase();
        let is_file = [".gguf", ".safetensors"].iter().any(|ending| lower.ends_with(ending));
        // `C:model` is a name with a tag in Ollama and a path on Windows; a drive letter is followed by a separator.
        match text.split_once('/') {
            _ if text.starts_with("mir:") => Self::Mir(text.into()),
            _ if is_file => Self::Path(text.into()),
            None if is_name(text) => Self::Name(text.into()),
            Some((org, name)) if is_name(org) && !org.ends_with(':') && is_name(name) => {
                Self::Hub { org: org.into(), name: name.into() }
            }
            _ => Self::Path(text.into()),
        }
    }
}

/// Whether it is one segment that starts with a letter or digit, so neither `.`, `..` nor `~`.
fn is_name(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphanumeric())
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-+:".contains(&byte))
}

/// Writes it as it was given.
impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Name(text) | Self::Path(text) | Self::Mir(text) => f.write_str(text),
            Self::Hub { org, name } => write!(f, "{org}/{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_apart_by_their_text() {
        let name = |text: &str| Source::Name(text.into());
        let path = |text: &str| Source::Path(text.into());
        let org = |org: &str, name: &str| Source::Hub { org: org.into(), name: name.into() };
        for (text, source) in [
            ("smollm2-135m", name("smollm2-135m")),
            ("llama3:7b-instruct-q4_K_M", name("llama3:7b-instruct-q4_K_M")),
            ("mlx-community/gpt-oss-20b-MXFP4-Q4", org("mlx-community", "gpt-oss-20b-MXFP4-Q4")),
            ("mir:model.art.gpt-oss:mlx-q4", Source::Mir("mir:model.art.gpt-oss:mlx-q4".into())),
            ("user/model", org("user", "model")),
            ("user/model:tag", org("user", "model:tag")),
            ("./user/model", path("./user/model")),
            ("./model", path("./model")),
            (".", path(".")),
            ("..", path("..")),
            ("../model", path("../model")),
            ("/path/to/model/fp16.bin", path("/path/to/model/fp16.bin")),
            ("a/b/c", path("a/b/c")),
            ("folder/", path("folder/")),
            ("~/model", path("~/model")),
            (r"C:\model", path(r"C:\model")),
            ("C:/model", path("C:/model")),
            ("model.gguf", path("model.gguf")),
            ("user/Model.GGUF", path("user/Model.GGUF")),
            ("model.safetensors", path("model.safetensors")),
            ("     model 1", path("     model 1")),
            ("模型", path("模型")),
        ] {
            assert_eq!(Source::of(text), source);
            assert_eq!(source.to_string(), text);
        }
    }
}
