//! Every architecture in the checkpoint's own precision, which Metal computes in, against mlx-lm's own run in it.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::*;
use crate::engine::backend::mlx::Mlx;
use crate::engine::checkpoint::ModelType;
use crate::verified::VerifiedFolder;

/// How far logits may be from mlx-lm's in bfloat16 on the same kernels: they are rounded to six decimals there.
const SAME: f32 = 1e-5;
/// The same for gpt-oss, whose factor on queries and keys we fold into their product; its router's close calls weigh that.
const SAME_BUT_FOR_A_ROUNDING: f32 = 1.5;

fn golden(folder: &Path) -> Value {
    let text = std::fs::read(folder.join("golden.json")).expect("the goldens are in the tree");
    serde_json::from_slice(&text).expect("goldens are JSON")
}

/// The tiny models in all forms that there are of them.
fn tiny() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/goldens/tiny");
    let mut all = Vec::new();
    for model in ["llama-tied", "llama-untied", "qwen2", "qwen3", "gemma3_text", "gpt_oss"] {
        for form in ["bf16", "q4-g32", "q4-g64", "q8-g64", "mxfp4", "mxfp4-q4"] {
            all.push(root.join(model).join(form));
        }
    }
    all.retain(|folder| folder.exists());
    assert_eq!(all.len(), 24, "six models in four forms each");
    all
}

#[test]
fn half_precision_is_mlx_lms_half_precision() {
    let mut compared = 0;
    for folder in tiny() {
        let golden = golden(&folder);
        let what = folder.display();
        let prompt: Vec<u32> = serde_json::from_value(golden["prompt"].clone()).expect("tokens");
        let checkpoint = Checkpoint::open(&VerifiedFolder::unlisted(&folder), None).expect("it is whole");
        let loaded = Runner::load(Mlx::native(), String::new(), 256, &checkpoint, &mut |_| ControlFlow::Continue(()));
        let mut runner = loaded.expect("it is whole");
        let states = runner.block(&prompt, &|| false).expect("nobody cancels");
        let logits = runner.architecture.logits(&runner.backend, &runner.backend.last_row(&states));
        assert!(states.is_half() && logits.is_half(), "{what}");
        // Experts that aren't quantised can't be computed in bfloat16 here.
        let Some(expected) = golden.get("native_logits") else { continue };
        let expected: Vec<f32> = serde_json::from_value(expected.clone()).expect("logits");
        let found = runner.backend.to_floats(logits).expect("it can be computed");
        let worst = found.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        let is_gpt_oss = checkpoint.config().model_type == ModelType::GptOss;
        assert!(worst < if is_gpt_oss { SAME_BUT_FOR_A_ROUNDING } else { SAME }, "{what}: {worst}");
        compared += 1;
    }
    assert_eq!(compared, 23);
}
