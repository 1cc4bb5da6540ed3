//! Checkpoints of models that also see, of which the text part alone is used: Gemma 3 from 4B on.
//!
//! Names are those that Google published (`language_model.model.layers…`, `vision_tower…`, `multi_modal_projector…`), which
//! mlx-community keeps, and those of transformers since 4.52 (`model.language_model.layers…`, `model.vision_tower…`).
//! Defaults are those of transformers' `Gemma3TextConfig`: the published 4B states nothing else than its sizes.

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::CheckpointError;
use super::config::malformed;

/// What `model_type` a model with pictures has, and what its text part has.
const WRAPPED: (&str, &str) = ("gemma3", "gemma3_text");
/// What the beginning of a name is in the whole model and in the text part alone; of nothing else is anything taken.
const NAMES: [(&str, &str); 3] =
    [("language_model.model.", "model."), ("language_model.lm_head.", "lm_head."), ("model.language_model.", "model.")];
/// What the whole model's configuration says for its text part too.
const WHOLE_ONLY: [&str; 4] = ["bos_token_id", "eos_token_id", "quantization", "quantization_config"];
/// Tensors of the parts that see.
const OTHER_PARTS: [&str; 4] =
    ["vision_tower.", "multi_modal_projector.", "model.vision_tower.", "model.multi_modal_projector."];

/// Puts the text part's configuration in place of the whole model's; says whether there was one.
pub(super) fn unwrap(json: &mut Map<String, Value>) -> Result<bool, CheckpointError> {
    if json.get("model_type").and_then(Value::as_str) != Some(WRAPPED.0) {
        return Ok(false);
    }
    let text = match json.remove("text_config") {
        Some(Value::Object(text)) => text,
        _ => return Err(malformed("it has no object `text_config`")),
    };
    if text.get("model_type").and_then(Value::as_str).is_some_and(|kind| kind != WRAPPED.1) {
        return Err(CheckpointError::Unsupported { what: "another text part than `gemma3_text`".into() });
    }
    for (name, value) in text.into_iter().filter(|(_, value)| !value.is_null()) {
        // The whole model's are those of chats: the text part's default ends an answer with `<eos>` alone.
        if !WHOLE_ONLY.contains(&name.as_str()) || !json.contains_key(&name) {
            json.insert(name, value);
        }
    }
    json.insert("model_type".into(), WRAPPED.1.into());
    for (name, default) in [
        ("num_attention_heads", json!(8)),
        ("num_key_value_heads", json!(4)),
        ("head_dim", json!(256)),
        ("vocab_size", json!(262_208)),
        ("max_position_embeddings", json!(131_072)),
        ("rope_theta", json!(1e6)),
    ] {
        json.entry(name).or_insert(default);
    }
    // Codes of quantised matrices are stated under the whole model's names.
    for key in ["quantization", "quantization_config"] {
        if let Some(Value::Object(stated)) = json.get_mut(key) {
            *stated = std::mem::take(stated)
                .into_iter()
                .map(|(name, value)| {
                    (text_name(&format!("{name}.")).map_or(name, |n| n.trim_end_matches('.').into()), value)
                })
                .collect();
        }
    }
    Ok(true)
}

/// What a tensor of the whole model is called in the text part; `None` where it belongs to another part. A name of neither
/// is kept, and refused where nothing takes it.
pub(super) fn text_name(name: &str) -> Option<Cow<'_, str>> {
    if OTHER_PARTS.iter().any(|part| name.starts_with(part)) {
        return None;
    }
    let renamed = NAMES.iter().find_map(|(whole, text)| Some(format!("{text}{}", name.strip_prefix(whole)?)));
    Some(renamed.map_or(Cow::Borrowed(name), Cow::Owned))
}
