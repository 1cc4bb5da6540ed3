//! What a model's own files say about it: `config.json`, the weights' headers, the front of `README.md`.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value as Json;

use crate::model_folder::weights::TensorLayout;

/// The longest `config.json` that is read, in bytes.
pub(super) const CONFIG_BYTES_MAX: u64 = 4 * 1024 * 1024;
/// How much of `README.md` is looked at, in bytes.
pub(super) const README_BYTES_MAX: u64 = 1024 * 1024;

/// What `config.json` says.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Config(Json);

impl Config {
    /// Reads it.
    ///
    /// # Errors
    /// What is wrong with it, in words.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, String> {
        let json: Json = serde_json::from_slice(bytes).map_err(|error| format!("`config.json`: {error}"))?;
        match json.get("model_type").and_then(Json::as_str) {
            Some(_) => Ok(Self(json)),
            None => Err("`config.json` has no `model_type`".into()),
        }
    }

    pub(super) fn model_type(&self) -> &str {
        self.0["model_type"].as_str().unwrap_or_default()
    }

    /// What is lost of the model here, in words.
    pub(super) fn loss(&self) -> &'static str {
        let is_seeing = self.0.get("text_config").is_some_and(Json::is_object);
        if is_seeing { "only its text part is used: it can't see pictures" } else { "none" }
    }

    /// A key of the model or, where it also sees or hears, of its text part.
    fn number(&self, key: &str) -> Option<u64> {
        self.0.get(key).or_else(|| self.0.get("text_config")?.get(key))?.as_u64()
    }

    pub(super) fn context(&self) -> Option<u64> {
        self.number("max_position_embeddings")
    }

    fn quantization(&self) -> Option<&serde_json::Map<String, Json>> {
        let quantization = self.0.get("quantization").or_else(|| self.0.get("quantization_config"));
        quantization?.as_object().filter(|object| object.contains_key("bits"))
    }

    fn group_size(&self, module: &str) -> u64 {
        let own = self.quantization().and_then(|all| all.get(module)?.get("group_size"));
        let size = own.or_else(|| self.quantization()?.get("group_size")).and_then(Json::as_u64);
        size.unwrap_or(64).min(1 << 20)
    }

    /// The quantisation in words.
    pub(super) fn quantisation(&self, tensors: &[TensorLayout]) -> String {
        let Some(quantization) = self.quantization() else {
            let dtypes: BTreeSet<String> =
                tensors.iter().map(|tensor| tensor.dtype.to_string().to_ascii_lowercase()).collect();
            return format!("none ({})", dtypes.into_iter().collect::<Vec<_>>().join(", "));
        };
        let words = |object: &serde_json::Map<String, Json>| {
            let mode = object.get("mode").and_then(Json::as_str).unwrap_or("affine");
            let bits = object.get("bits").and_then(Json::as_u64)?;
            let group = object.get("group_size").and_then(Json::as_u64)?;
            let mode: String = mode.chars().filter(char::is_ascii_alphanumeric).take(16).collect();
            Some(format!("{bits}-bit {mode} in groups of {group}"))
        };
        let all = quantization.values().filter_map(|value| words(value.as_object()?));
        let all: BTreeSet<String> = words(quantization).into_iter().chain(all).collect();
        all.into_iter().collect::<Vec<_>>().join(" and ")
    }

    /// How many numbers the tensors stand for.
    pub(super) fn parameters(&self, tensors: &[TensorLayout]) -> u64 {
        let elements = |tensor: &TensorLayout| tensor.shape.iter().fold(1u64, |n, &m| n.saturating_mul(m));
        let by_name: BTreeMap<&str, &TensorLayout> =
            tensors.iter().map(|tensor| (tensor.name.as_str(), tensor)).collect();
        let mut count = 0u64;
        for tensor in tensors {
            let name = tensor.name.as_str();
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let part = name.strip_suffix(".scales").or_else(|| name.strip_suffix(".biases"));
            if part.is_some_and(|module| by_name.contains_key(format!("{module}.weight").as_str())) {
                continue;
            }
            let scales = by_name.get(format!("{module}.scales").as_str());
            let of_tensor = match scales {
                Some(scales) => elements(scales).saturating_mul(self.group_size(module)),
                None => elements(tensor),
            };
            count = count.saturating_add(of_tensor);
        }
        count
    }
}

/// The licence in the front matter of a Hugging Face `README.md`.
pub(super) fn licence_in(readme: &str) -> Option<String> {
    let front = readme.strip_prefix("---\n")?;
    let (front, _) = front.split_once("\n---")?;
    let line = front.lines().find_map(|line| line.strip_prefix("license:"))?;
    let licence: String = line.trim().trim_matches(['"', '\'']).chars().filter(|c| !c.is_control()).take(100).collect();
    (!licence.is_empty()).then_some(licence)
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::Dtype;

    fn tensor(name: &str, dtype: Dtype, shape: &[u64]) -> TensorLayout {
        TensorLayout { name: name.into(), dtype, shape: shape.to_vec(), bytes: 0 }
    }

    #[test]
    fn configurations_say_what_a_model_is() {
        let tensors = [
            tensor("a.weight", Dtype::U32, &[4, 8]),
            tensor("a.scales", Dtype::F16, &[4, 1]),
            tensor("a.biases", Dtype::F16, &[4, 1]),
            tensor("b.weight", Dtype::U32, &[4, 8]),
            tensor("b.scales", Dtype::F16, &[4, 2]),
            tensor("norm.weight", Dtype::BF16, &[7]),
        ];
        let config = Config::parse(
            br#"{"model_type": "llama", "max_position_embeddings": 99,
                "quantization": {"bits": 4, "group_size": 64, "b": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}}"#,
        )
        .expect("it is right");
        assert_eq!((config.model_type(), config.context(), config.loss()), ("llama", Some(99), "none"));
        assert_eq!(config.quantisation(&tensors), "4-bit affine in groups of 64 and 4-bit mxfp4 in groups of 32");
        assert_eq!(config.parameters(&tensors), 4 * 64 + 8 * 32 + 7);
        let config = Config::parse(br#"{"model_type": "x", "text_config": {"max_position_embeddings": 5}}"#);
        let config = config.expect("it is right");
        assert_eq!((config.context(), config.loss()), (Some(5), "only its text part is used: it can't see pictures"));
        assert_eq!(config.quantisation(&tensors[5..]), "none (bf16)");
        for (text, expected) in [("", "EOF"), ("[]", "no `model_type`"), ("{\"model_type\": 5}", "no `model_type`")] {
            assert!(Config::parse(text.as_bytes()).expect_err("it is wrong").contains(expected), "{text}");
        }
    }

    #[test]
    fn licences_are_found_in_the_front_matter_only() {
        for (text, licence) in [
            ("---\nlicense: apache-2.0\ntags: []\n---\n# X", Some("apache-2.0")),
            ("---\nlicense: \"mit\"\n---\n", Some("mit")),
            ("---\ntags: []\n---\nlicense: mit\n", None),
            ("license: mit", None),
            ("---\nlicense: mit", None),
        ] {
            assert_eq!(licence_in(text).as_deref(), licence, "{text}");
        }
    }
}
