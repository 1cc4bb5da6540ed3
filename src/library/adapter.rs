//! The LoRA adapter that a model's own Modelfile names: it comes along when the model is imported.

use std::path::Path;

use super::LibraryError;
use super::source::{SmallFile, inside, is_weights};
use crate::disk;
use crate::engine::checkpoint::AdapterFiles;
use crate::engine::checkpoint::adapter::ADAPTER_CONFIG;
use crate::modelfile::Modelfile;
use crate::verified::VerifiedFolder;

/// What the adapter's weights are called in a model's folder, which has no folders in it.
const ADAPTER_NAME: &str = "adapters.safetensors";

/// An adapter to be copied.
pub(super) struct Companion {
    /// Its configuration and its weights, by their new names.
    pub(super) files: [SmallFile; 2],
    /// The Modelfile with the adapter's new place, where that is another.
    pub(super) modelfile: Option<Vec<u8>>,
}

/// The adapter that the Modelfile `modelfile` of the model in `folder` names, if it does; links may only lead into `root`.
///
/// # Errors
/// It isn't in the folder, or isn't an adapter that is known.
pub(super) fn named_in(modelfile: &[u8], folder: &Path, root: &Path) -> Result<Option<Companion>, LibraryError> {
    let refused = |what: String| LibraryError::source_refused(folder, what);
    // What a model's own file has wrong is told where that model is run.
    let Ok(parsed) = Modelfile::from_bytes(modelfile) else { return Ok(None) };
    let Some(path) = parsed.modelfile.adapter() else { return Ok(None) };
    if Path::new(path).has_root() || path.contains('\\') || path.split('/').any(|part| part == "..") {
        let what = format!("its Modelfile's adapter `{path}` isn't in the folder; copy it there, and correct the line");
        return Err(refused(what));
    }
    let files = AdapterFiles::new(VerifiedFolder::unlisted(folder), path);
    let [config, weights] = files.paths().map_err(|error| refused(format!("its Modelfile's `ADAPTER`: {error}")))?;
    if !disk::exists(&folder.join(&weights)) {
        return Err(refused(format!("its Modelfile's adapter `{weights}` isn't there")));
    }
    let stays = !weights.contains('/') && !is_weights(&weights);
    let name = if stays { weights.as_str() } else { ADAPTER_NAME };
    let modelfile = match stays {
        true => None,
        false => {
            let text = parsed.modelfile.with_adapter(name).map_err(|error| refused(error.to_string()))?;
            Some(parsed.modelfile.encoding().encode(&text))
        }
    };
    let file = |name: &str, path: &str| {
        let path = inside(root, &folder.join(path))?;
        let (_, size) = disk::open(&path)?;
        Ok::<_, LibraryError>(SmallFile { name: name.into(), path, size })
    };
    Ok(Some(Companion { files: [file(ADAPTER_CONFIG, &config)?, file(name, &weights)?], modelfile }))
}
