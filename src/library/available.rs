//! Models that can be pulled by a short name: where they are and what they need, approximately. No weights, no digests.

use serde::Deserialize;

/// A model that isn't on the drive until it is pulled.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
pub struct Available {
    /// Its short name.
    pub name: String,
    /// What its makers call it.
    pub title: String,
    /// Its repository on the Hub.
    pub source: String,
    /// Its licence.
    pub licence: String,
    /// How many parameters it has, as its makers round it.
    pub parameters: u64,
    /// How many bytes its weights have, computed from the parameters: approximate.
    pub weights_bytes: u64,
    /// How much memory it needs with its Modelfile's context: approximate.
    pub memory_bytes: u64,
    /// The Modelfile that it gets.
    #[serde(skip)]
    pub modelfile: &'static str,
}

macro_rules! listed {
    ($($name:literal),*) => {
        [$((
            include_str!(concat!("../../models/", $name, "/model.toml")),
            include_str!(concat!("../../models/", $name, "/Modelfile")),
        )),*]
    };
}

/// The models that can be pulled by name, the smallest first.
pub fn available() -> Vec<Available> {
    let texts = listed!("qwen3-0.6b", "gemma3-1b", "qwen3-4b", "gpt-oss-20b");
    let read = |(text, modelfile)| {
        let model: Available = toml::from_str(text).expect("a test reads every description in the tree");
        Available { modelfile, ..model }
    };
    texts.into_iter().map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hub::listing::is_repo;
    use crate::library::is_model_name;
    use crate::modelfile::Modelfile;

    #[test]
    fn every_description_in_the_tree_is_right() {
        let models = available();
        assert!(models.is_sorted_by_key(|model| model.weights_bytes) && models.len() == 4);
        for model in models {
            assert!(is_model_name(&model.name) && is_repo(&model.source), "{model:?}");
            assert!(model.memory_bytes > model.weights_bytes && model.weights_bytes == model.parameters * 45 / 80);
            Modelfile::parse(model.modelfile).expect("it is right");
        }
    }
}
