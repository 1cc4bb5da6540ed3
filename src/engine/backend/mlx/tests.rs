//! What MLX refuses becomes an error, once; caches that grow and shrink hold what they should.

use super::*;

const ATTENTION: Attention = Attention { heads: 4, kv_heads: 2, head_dim: 8, scale: 0.35, window: None };

fn backend() -> Mlx {
    Mlx::new(true).expect("MLX runs where it is built in")
}

/// Values that differ from each other, around 0.
fn tensor(mlx: &Mlx, rows: usize, width: usize, seed: usize) -> Tensor {
    let value = |idx: usize| ((idx * 7 + seed * 13) % 31) as f32 / 15.5 - 1.0;
    let values: Vec<f32> = (0..rows * width).map(value).collect();
    mlx.tensor(Ok(Array::from_slice(&values, &[rows as i32, width as i32])), rows, width)
}

fn rows(mlx: &Mlx, x: &Tensor, first: usize, end: usize) -> Tensor {
    let slice = raw::slice(&x.array, &[first as i32, 0], &[end as i32, x.width as i32]);
    mlx.tensor(slice, end - first, x.width)
}

#[test]
fn what_mlx_refuses_is_an_error_and_the_next_computation_works() {
    let mlx = backend();
    let sum = mlx.add(tensor(&mlx, 2, 8, 0), &tensor(&mlx, 3, 8, 1));
    let later = mlx.silu_gate(sum.clone(), &sum);
    let error = mlx.to_floats(later).expect_err("2 rows can't be added to 3");
    assert_eq!(error.backend, "mlx");
    assert!(error.why.contains("broadcast"), "{error}");
    mlx.keep(raw::slice(&Array::from_f32(1.0), &[0, 0], &[1, 1]));
    let error = mlx.compute(&tensor(&mlx, 1, 1, 0)).expect_err("a number has no rows");
    assert!(error.to_string().starts_with("the engine `mlx` can't compute: `slice`"), "{error}");
    assert_eq!(mlx.to_floats(tensor(&mlx, 1, 2, 0)), Ok(vec![-1.0, 7.0 / 15.5 - 1.0]));
}

#[test]
fn weights_of_a_wrong_size_are_refused() {
    backend();
    let mut buffer = raw::Buffer::new(6);
    assert!(!buffer.push(&[1, 2, 3]));
    assert!(buffer.push(&[4, 5, 6, 7]), "what is too much is dropped");
    for shape in [&[7][..], &[2, 2], &[-6, -1], &[i32::MAX, i32::MAX, i32::MAX]] {
        buffer.array(shape, Dtype::Uint8).expect_err("it isn't 6 bytes");
    }
    buffer.array(&[6], Dtype::Float64).expect_err("no model has it");
    let array = buffer.array(&[2, 3], Dtype::Uint8).expect("these are 6 bytes");
    assert_eq!(array.to_vec_exact::<u8>().expect("it is contiguous"), [1, 2, 3, 4, 5, 6]);
}

/// In one go, and piece by piece over several growths of the room, and after going back.
#[test]
fn attention_is_the_same_however_the_cache_grew() {
    const LEN: usize = 600;
    let mlx = backend();
    for window in [None, Some(1), Some(100), Some(LEN)] {
        let attention = Attention { window, ..ATTENTION };
        let (q, k, v) = (tensor(&mlx, LEN, 32, 1), tensor(&mlx, LEN, 16, 2), tensor(&mlx, LEN, 16, 3));
        let attend = |cache: &mut Cache, first: usize, end: usize| {
            let [q, k, v] = [&q, &k, &v].map(|x| rows(&mlx, x, first, end));
            mlx.to_floats(mlx.attention(&attention, cache, &q, k, v)).expect("the shapes fit")
        };
        let whole = attend(&mut mlx.cache(&attention), 0, LEN);
        let mut cache = mlx.cache(&attention);
        attend(&mut cache, 0, 300);
        mlx.truncate(&mut cache, 250);
        let mut pieces = vec![(250, 255), (255, 256), (256, 257), (257, 513), (513, LEN)];
        pieces.extend((500..520).map(|position| (position, position + 1)));
        for (first, end) in pieces {
            assert!(cache.shortest() <= first, "a step beyond the window is kept");
            mlx.truncate(&mut cache, first);
            let found = attend(&mut cache, first, end);
            let expected = &whole[first * 32..end * 32];
            let worst = found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert_eq!(found.len(), expected.len());
            assert!(worst < 1e-5, "window {window:?}, positions {first}..{end}: {worst}");
        }
        assert_eq!(
            cache.shortest() > 0,
            window.is_some_and(|window| window < 256),
            "what no window reaches is dropped"
        );
    }
}

/// The mask against its definition: a query sees itself and the `window - 1` positions before it.
#[test]
fn a_window_hides_what_is_before_it() {
    let mlx = backend();
    let attention = Attention { heads: 1, kv_heads: 1, head_dim: 2, window: Some(3), scale: 1.0 };
    let zeros = mlx.tensor(ops::zeros::<f32>(&[6, 2]), 6, 2);
    let values = Array::from_iter((0..12).map(|idx| (idx / 2) as f32), &[6, 2]);
    let values = mlx.tensor(Ok(values), 6, 2);
    let seen = mlx.attention(&attention, &mut mlx.cache(&attention), &zeros, zeros.clone(), values);
    let means: Vec<f32> = mlx.to_floats(seen).expect("the shapes fit").into_iter().step_by(2).collect();
    let expected = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0];
    assert!(means.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{means:?}");
}
