//! quick.

use super::*;
use crate::engine::models::llama::Llama;
use crate::verified::VerifiedFolder;
use std::path::Path;

#[test]
fn quick() {
    for variant in ["bf16", "q4-g32", "q4-g64", "q8-g64"] {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/vectors/goldens/tiny/llama-tied").join(variant);
        let golden: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.join("golden.json")).expect("x")).expect("x");
        let checkpoint = Checkpoint::open(&VerifiedFolder::unlisted(&folder)).expect("x");
        let mlx = Mlx::new(true).expect("x");
        let mut weights = mlx.load(&checkpoint, &mut |_| ControlFlow::Continue(())).expect("x");
        let llama = Llama::new(&mlx, checkpoint.config(), &mut weights).expect("x");
        mlx.finish(weights).expect("x");
        let mut caches = llama.caches(&mlx);
        let prompt: Vec<u32> = serde_json::from_value(golden["prompt"].clone()).expect("x");
        let states = llama.forward(&mlx, &prompt, 0, &mut caches, &|| false).expect("x");
        let logits = mlx.to_floats(llama.logits(&mlx, &mlx.last_row(&states))).expect("x");
        let positions: Vec<u32> = serde_json::from_value(golden["positions"].clone()).expect("x");
        assert_eq!(positions.last(), Some(&39));
        let expected: Vec<f32> = serde_json::from_value(golden["logits"][positions.len() - 1].clone()).expect("x");
        let worst = logits.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(worst < 5e-4, "{worst}");
    }
}
