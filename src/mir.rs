//! `Mir`: what a model is, whatever its file is called: `mir:domain.architecture.series:compatibility`.
//!
//! A series is a family of weights without their size and their minor version, so `mir:model.art.gpt-oss` names gpt-oss of
//! any size and form, and `…:mlx-q4` one form of it. A name is resolved among models that are there, never by fetching.

use std::fmt;
use std::str::FromStr;

use crate::excerpt::excerpt;
use crate::hint::Hint;

/// The longest name in bytes.
pub const MIR_BYTES_MAX: usize = 128;
/// How many near names an error tells.
const NEAR_MAX: usize = 5;

/// What a name is about.
const DOMAINS: [&str; 4] = ["dev", "model", "ops", "info"];

/// The architectures, each with its other names.
const ARCHITECTURES: [(&str, &[&str]); 22] = [
    ("gru", &[]),
    ("rbm", &[]),
    ("tae", &[]),
    ("vae", &[]),
    ("lstm", &[]),
    ("resnet", &[]),
    ("cnn", &[]),
    ("rcnn", &[]),
    ("rnn", &[]),
    ("brnn", &[]),
    ("gan", &[]),
    ("ssm", &["mamba"]),
    ("stst", &["ststm"]),
    ("art", &["artm"]),
    ("lora", &[]),
    ("diffusion", &[]),
    ("controlnet", &[]),
    ("aet", &["aetm"]),
    ("vit", &[]),
    ("moe", &[]),
    ("dit", &[]),
    ("unclassified", &[]),
];

/// A model's identity. Equal names are written alike: an architecture's other name becomes its first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mir {
    domain: &'static str,
    architecture: &'static str,
    series: String,
    compatibility: Option<String>,
}

/// A text is no name of a model.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ParseMirError {
    /// It has another form.
    #[error("{text} isn't of the form `mir:domain.architecture.series:compatibility`")]
    Form {
        /// The text, shortened.
        text: String,
    },
    /// The domain or architecture isn't known.
    #[error("`{word}` is no {what}")]
    Unknown {
        /// `domain` or `architecture`.
        what: &'static str,
        /// The word.
        word: String,
        /// The known one that is most like it.
        near: Option<&'static str>,
    },
    /// The series says how large the model is, or which minor version.
    #[error("the series `{series}` has `{part}` in it, which is a size or a minor version")]
    Series {
        /// The series.
        series: String,
        /// What doesn't belong to it.
        part: String,
    },
}

impl Hint for ParseMirError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Form { .. } => {
                "write for example `mir:model.art.gpt-oss:mlx-q4`: lower-case letters, digits and single hyphens".into()
            }
            Self::Unknown { near: Some(near), .. } => format!("write `{near}`"),
            Self::Unknown { what: "domain", .. } => format!("write one of {}", DOMAINS.join(", ")),
            Self::Unknown { .. } => {
                let known: Vec<_> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
                format!("write one of {}", known.join(", "))
            }
            Self::Series { part, .. } => format!("leave `{part}` out; sizes belong to the compatibility, after a `:`"),
        })
    }
}

/// No model, or not one alone, has the identity that was asked for.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ResolveMirError {
    /// None of this domain, architecture and series is there.
    #[error("no model here is `{wanted}`")]
    Absent {
        /// What was asked for.
        wanted: String,
        /// The names that are most like it.
        near: Vec<String>,
    },
    /// Several are, and none is the one.
    #[error("several models here are `{wanted}`: {}", found.join(", "))]
    Ambiguous {
        /// What was asked for.
        wanted: String,
        /// Those that are.
        found: Vec<String>,
    },
}

impl Hint for ResolveMirError {
    fn hint(&self) -> Option<String> {
        Some(match self {
            Self::Absent { near, .. } if near.is_empty() => {
                "give a model its identity with `MIR` in its Modelfile, or name one that `tiles model list` shows"
                    .into()
            }
            Self::Absent { near, .. } => format!("near names are {}", near.join(", ")),
            Self::Ambiguous { .. } => "write the whole name of one of them".into(),
        })
    }
}

impl Mir {
    /// Finds the one of `known` that is meant: the same compatibility, else the one without a compatibility, else the one
    /// with `*`, else the only one of the series.
    ///
    /// # Errors
    /// [`ResolveMirError`]. Never one of another series.
    pub fn resolve<'a>(&self, known: impl IntoIterator<Item = &'a Mir>) -> Result<&'a Mir, ResolveMirError> {
        let known: Vec<&Mir> = known.into_iter().collect();
        let same: Vec<&Mir> = known.iter().copied().filter(|mir| mir.head() == self.head()).collect();
        let with = |compatibility: Option<&str>| same.iter().find(|mir| mir.compatibility() == compatibility);
        let exact = with(self.compatibility()).or_else(|| with(None)).or_else(|| with(Some("*")));
        match (exact, same.as_slice()) {
            (Some(mir), _) | (None, [mir]) => Ok(mir),
            (None, []) => Err(ResolveMirError::Absent { wanted: self.to_string(), near: self.near(&known) }),
            (None, several) => {
                let found = several.iter().take(NEAR_MAX).map(ToString::to_string).collect();
                Err(ResolveMirError::Ambiguous { wanted: self.to_string(), found })
            }
        }
    }

    /// The compatibility: `mlx-q4`, `*`, or none.
    pub fn compatibility(&self) -> Option<&str> {
        self.compatibility.as_deref()
    }

    fn head(&self) -> (&str, &str, &str) {
        (self.domain, self.architecture, &self.series)
    }

    fn near(&self, known: &[&Mir]) -> Vec<String> {
        let mut scored: Vec<(f64, String)> = known
            .iter()
            .map(|mir| (strsim::jaro_winkler(&mir.series, &self.series), mir.to_string()))
            .filter(|(score, _)| *score > 0.7)
            .collect();
        scored.sort_by(|a, b| b.0.total_cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        scored.dedup();
        scored.into_iter().take(NEAR_MAX).map(|(_, name)| name).collect()
    }
}

impl FromStr for Mir {
    type Err = ParseMirError;

    fn from_str(text: &str) -> Result<Self, ParseMirError> {
        let form = || ParseMirError::Form { text: excerpt(text) };
        if text.len() > MIR_BYTES_MAX {
            return Err(form());
        }
        let rest = text.strip_prefix("mir:").ok_or_else(form)?;
        let (head, compatibility) = match rest.split_once(':') {
            Some((head, compatibility)) => (head, Some(compatibility)),
            None => (rest, None),
        };
        let &[domain, architecture, series] = head.split('.').collect::<Vec<_>>().as_slice() else {
            return Err(form());
        };
        let words = [domain, architecture, series];
        if !words.into_iter().chain(compatibility.filter(|it| *it != "*")).all(is_word) {
            return Err(form());
        }
        if let Some(part) = series.split('-').find(|part| is_size(part)) {
            return Err(ParseMirError::Series { series: series.into(), part: part.into() });
        }
        Ok(Self {
            domain: known("domain", domain, DOMAINS.iter().map(|name| (*name, *name)))?,
            architecture: known("architecture", architecture, architectures())?,
            series: series.into(),
            compatibility: compatibility.map(Into::into),
        })
    }
}

impl fmt::Display for Mir {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mir:{}.{}.{}", self.domain, self.architecture, self.series)?;
        self.compatibility.as_ref().map_or(Ok(()), |compatibility| write!(f, ":{compatibility}"))
    }
}

/// Every name of an architecture with its first one.
fn architectures() -> impl Iterator<Item = (&'static str, &'static str)> {
    ARCHITECTURES.iter().flat_map(|(name, others)| others.iter().chain([name]).map(move |other| (*other, *name)))
}

fn known(
    what: &'static str,
    word: &str,
    names: impl Iterator<Item = (&'static str, &'static str)>,
) -> Result<&'static str, ParseMirError> {
    let mut near = (0.75, None);
    for (other, name) in names {
        if other == word {
            return Ok(name);
        }
        let score = strsim::jaro_winkler(other, word);
        if score > near.0 {
            near = (score, Some(name));
        }
    }
    Err(ParseMirError::Unknown { what, word: word.into(), near: near.1 })
}

/// Lower-case letters and digits with single hyphens between them.
fn is_word(word: &str) -> bool {
    word.split('-')
        .all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()))
}

/// `20b`, `135m`, `0` as the second part of `qwen2-5`: how large a model is, or its minor version.
fn is_size(part: &str) -> bool {
    let digits = part.trim_end_matches(['k', 'm', 'b', 't']);
    part.len() - digits.len() <= 1 && !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn mir(text: &str) -> Mir {
        text.parse().unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn names_are_parsed_and_printed() {
        for (text, printed) in [
            ("mir:model.art.gpt-oss:mlx-q4", "mir:model.art.gpt-oss:mlx-q4"),
            ("mir:model.artm.qwen3-coder", "mir:model.art.qwen3-coder"),
            ("mir:model.mamba.falcon:*", "mir:model.ssm.falcon:*"),
            ("mir:info.unclassified.x", "mir:info.unclassified.x"),
        ] {
            assert_eq!(mir(text).to_string(), printed);
        }
    }

    #[test]
    fn other_texts_are_refused_with_a_way_out() {
        for (text, message, hint) in [
            ("model.art.x", "isn't of the form", "mir:model.art.gpt-oss"),
            ("mir:model.art", "isn't of the form", ""),
            ("mir:model.art.x.y", "isn't of the form", ""),
            ("mir:model.art.X", "isn't of the form", "lower-case"),
            ("mir:model.art.a--b", "isn't of the form", ""),
            ("mir:model.art.a:", "isn't of the form", ""),
            ("mir:model.art.a:b:c", "isn't of the form", ""),
            ("mir:model.art.\u{1b}[2J", "isn't of the form", ""),
            ("mir:modle.art.x", "`modle` is no domain", "write `model`"),
            ("mir:zzz.art.x", "`zzz` is no domain", "dev, model"),
            ("mir:model.arx.x", "`arx` is no architecture", "write `art`"),
            ("mir:model.art.gpt-oss-20b", "has `20b` in it", "leave `20b` out"),
            ("mir:model.art.qwen2-5", "has `5` in it", "leave `5` out"),
        ] {
            let error = text.parse::<Mir>().expect_err(text);
            assert!(error.to_string().contains(message), "{text}: {error}");
            assert!(!error.to_string().contains('\u{1b}'), "{text}");
            assert!(error.hint().is_some_and(|said| said.contains(hint)), "{text}: {:?}", error.hint());
        }
        assert!(format!("mir:model.art.{}", "x".repeat(200)).parse::<Mir>().is_err());
    }

    #[test]
    fn a_name_is_resolved_within_its_series() {
        let check = |wanted: &str, known: &[&str], expected: Result<&str, &str>| {
            let known: Vec<Mir> = known.iter().map(|text| mir(text)).collect();
            let found = mir(wanted).resolve(&known).map(ToString::to_string).map_err(|error| error.to_string());
            match expected {
                Ok(name) => assert_eq!(found.as_deref(), Ok(name), "{wanted}"),
                Err(part) => assert!(found.as_ref().is_err_and(|error| error.contains(part)), "{wanted}: {found:?}"),
            }
        };
        let [bare, q4, q8, any] = ["mir:model.art.a", "mir:model.art.a:q4", "mir:model.art.a:q8", "mir:model.art.a:*"];
        check(q4, &[bare, q8, q4, any], Ok(q4));
        check(q4, &[q8, any, bare], Ok(bare));
        check(q4, &[q8, any], Ok(any));
        check(q4, &[q8], Ok(q8));
        check(bare, &[q4, any], Ok(any));
        check(bare, &[q4, q8], Err("several models here are `mir:model.art.a`: mir:model.art.a:q4"));
        check(bare, &["mir:model.art.ab", "mir:model.vit.a", "mir:info.art.a"], Err("no model here is"));
        let error = mir("mir:model.art.qwen").resolve(&[mir("mir:model.art.qwen3:q4")]).expect_err("another series");
        assert_eq!(error.hint().as_deref(), Some("near names are mir:model.art.qwen3:q4"));
        let error = mir(bare).resolve(&[]).expect_err("there is none");
        assert!(error.hint().is_some_and(|hint| hint.contains("`MIR`")));
    }

    proptest! {
        #[test]
        fn parsing_and_printing_are_inverse(series in "[a-z]{1,8}(-[a-z][a-z0-9]{0,5}){0,2}", compatibility in "(:([a-z0-9]{1,6}(-[a-z0-9]{1,4})?|\\*))?") {
            let text = format!("mir:model.art.{series}{compatibility}");
            prop_assert_eq!(mir(&text).to_string(), text);
        }

        #[test]
        fn no_text_makes_it_panic(text in "(mir:)?[a-z.:*-]{0,40}\\PC{0,10}") {
            if let Ok(mir) = text.parse::<Mir>() {
                prop_assert_eq!(mir.to_string().parse::<Mir>(), Ok(mir));
            }
        }
    }
}
