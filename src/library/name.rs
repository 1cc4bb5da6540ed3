//! Names of models: the same on every drive, and easy to type.

use crate::manifest::path::check_below;

/// The longest name of a model, in bytes.
pub const MODEL_NAME_BYTES_MAX: usize = 64;

/// Whether `name` can be a model's: `[a-z0-9][a-z0-9._-]*`, short, and not reserved on any system.
pub fn is_model_name(name: &str) -> bool {
    let letter = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    name.len() <= MODEL_NAME_BYTES_MAX
        && name.starts_with(letter)
        && name.chars().all(|c| letter(c) || "._-".contains(c))
        && check_below(name).is_ok()
}

/// The name that fits what a source is called, such as `smollm2-135m` for `SmolLM2 135M`; `None` where nothing is left.
pub fn model_name_from(text: &str) -> Option<String> {
    let mut name = String::new();
    for c in text.chars() {
        let c = if c.is_ascii_alphanumeric() || "._".contains(c) { c.to_ascii_lowercase() } else { '-' };
        if c != '-' || !name.ends_with('-') {
            name.push(c);
        }
    }
    let trimmed: String = name.trim_start_matches(['.', '_', '-']).chars().take(MODEL_NAME_BYTES_MAX).collect();
    let name = trimmed.trim_end_matches(['.', '_', '-']).to_owned();
    is_model_name(&name).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_and_reserved_ones_refused() {
        for (name, fits) in [
            ("smollm2-135m.q4_1", true),
            ("7b", true),
            ("", false),
            (".hidden", false),
            ("-v", false),
            ("UPPER", false),
            ("a b", false),
            ("a/b", false),
            ("..", false),
            ("con", false),
            ("nul.v2", false),
            ("x.partial", false),
            ("x.", false),
            ("é", false),
        ] {
            assert_eq!(is_model_name(name), fits, "{name}");
        }
        assert!(is_model_name(&"a".repeat(64)) && !is_model_name(&"a".repeat(65)));
    }

    #[test]
    fn names_are_made_of_what_a_source_is_called() {
        for (text, name) in [
            ("SmolLM2-135M-Instruct.Q4_1", Some("smollm2-135m-instruct.q4_1")),
            ("gpt-oss 20b (MXFP4)", Some("gpt-oss-20b-mxfp4")),
            ("模型", None),
            ("._x", Some("x")),
            ("COM1", None),
            ("v.partial", None),
        ] {
            assert_eq!(model_name_from(text).as_deref(), name, "{text}");
        }
    }
}
