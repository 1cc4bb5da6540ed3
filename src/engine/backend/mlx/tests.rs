//! What MLX refuses becomes an error, once; caches that grow and shrink hold what they should.

use super::raw::Packing;
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
    const LEN: usize = 2_600;
    let mlx = backend();
    for window in [None, Some(1), Some(100), Some(LEN)] {
        let attention = Attention { window, ..ATTENTION };
        let (q, k, v) = (tensor(&mlx, LEN, 32, 1), tensor(&mlx, LEN, 16, 2), tensor(&mlx, LEN, 16, 3));
        let attend = |cache: &mut Cache, first: usize, end: usize| {
            let [q, k, v] = [&q, &k, &v].map(|x| rows(&mlx, x, first, end));
            mlx.to_floats(mlx.attention(&attention, None, cache, &q, k, v)).expect("the shapes fit")
        };
        let whole = attend(&mut mlx.cache(&attention), 0, LEN);
        let mut cache = mlx.cache(&attention);
        attend(&mut cache, 0, 300);
        mlx.truncate(&mut cache, 250);
        let mut pieces = vec![(250, 255), (255, 256), (256, 257), (257, 513), (513, 2_000), (2_000, LEN)];
        pieces.extend((2_500..2_520).map(|position| (position, position + 1)));
        for (first, end) in pieces {
            assert!(cache.shortest() <= first, "enough beyond the window is kept");
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
    let seen = mlx.attention(&attention, None, &mut mlx.cache(&attention), &zeros, zeros.clone(), values);
    let means: Vec<f32> = mlx.to_floats(seen).expect("the shapes fit").into_iter().step_by(2).collect();
    let expected = [0.0, 0.5, 1.0, 2.0, 3.0, 4.0];
    assert!(means.iter().zip(expected).all(|(a, b): (&f32, f32)| (a - b).abs() < 1e-6), "{means:?}");
}

/// The largest difference of two results.
fn worst(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    found.iter().zip(expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

/// Codes that differ from each other, `[.., 8 words]`: rows of 64 elements of 4 bits.
fn packed(mode: &'static std::ffi::CStr, rows: &[i32]) -> Packed {
    let count = rows.iter().product::<i32>();
    let shape = |width: i32| [rows, &[width][..]].concat();
    let word = |idx: i32| (idx as u32).wrapping_mul(2_654_435_761) ^ 0x5bd1_e995;
    let weight = Array::from_iter((0..count * 8).map(word), &shape(8));
    let packing = Packing { group_size: 32, bits: 4, mode };
    if mode == c"mxfp4" {
        let scales = Array::from_iter((0..count * 2).map(|idx| (120 + idx % 5) as u8), &shape(2));
        return Packed { packing, weight, scales, biases: None };
    }
    let scales = Array::from_iter((0..count * 2).map(|idx| 0.01 + (idx % 7) as f32 * 0.002), &shape(2));
    let biases = Array::from_iter((0..count * 2).map(|idx| -0.1 + (idx % 3) as f32 * 0.02), &shape(2));
    Packed { packing, weight, scales, biases: Some(biases) }
}

#[test]
fn packed_matrices_compute_what_their_unpacked_rows_do() {
    let mlx = backend();
    let x = tensor(&mlx, 3, 64, 4);
    for mode in [c"affine", c"mxfp4"] {
        let all = Array::from_iter(0..24_u32, &[24]);
        let packed = packed(mode, &[24]);
        let dense = packed.rows(&all).expect("the rows are there").as_dtype(Dtype::Float32).expect("floats");
        let linear = |matrix| Linear { matrix, bias: None, adapter: None, rows: 24, columns: 64 };
        let [found, expected] =
            mlx.linears(&x, [&linear(Matrix::Packed(packed)), &linear(Matrix::Dense(dense))]).map(|x| mlx.to_floats(x));
        let expected = expected.expect("the shapes fit");
        assert!(expected.iter().any(|value| value.abs() > 0.1), "{mode:?}");
        assert!(worst(&found.expect("the shapes fit"), &expected) < 2e-4, "{mode:?}");
    }
}

/// Many tokens are sorted by expert, few aren't; both against one matrix after another.
#[test]
fn experts_compute_the_same_sorted_and_not() {
    const TOKENS: usize = 40;
    let mlx = backend();
    let (x, scores) = (tensor(&mlx, TOKENS, 64, 5), tensor(&mlx, TOKENS, 4, 6));
    let bias = || Some(tensor(&mlx, 4, 24, 7).array);
    let down = || Experts {
        matrix: Matrix::Dense(tensor(&mlx, 4 * 8, 24, 8).array.reshape(&[4, 8, 24]).expect("fits")),
        bias: None,
        rows: 8,
    };
    for mode in [c"affine", c"mxfp4"] {
        let stack = Experts { matrix: Matrix::Packed(packed(mode, &[4, 24])), bias: bias(), rows: 24 };
        let mix = |first: usize, end: usize| {
            let [x, scores] = [&x, &scores].map(|x| rows(&mlx, x, first, end));
            let routing = mlx.route(scores, 2);
            let [inner] = mlx.expert_linears(&x, [&stack], &routing);
            let [outer] = mlx.expert_linears(&inner, [&down()], &routing);
            mlx.to_floats(mlx.combine(outer, &routing)).expect("the shapes fit")
        };
        let whole = mix(0, TOKENS);
        for token in 0..TOKENS {
            let expected = one_by_one(&mlx, (&x, &scores), (&stack, &down()), token);
            assert!(worst(&mix(token, token + 1), &expected) < 1e-4, "{mode:?}, token {token} alone");
            assert!(worst(&whole[token * 8..(token + 1) * 8], &expected) < 1e-4, "{mode:?}, token {token} of many");
        }
    }
}

/// The two best experts of one token, each computed as an ordinary matrix.
fn one_by_one(mlx: &Mlx, (x, scores): (&Tensor, &Tensor), (up, down): (&Experts, &Experts), token: usize) -> Vec<f32> {
    let scores = mlx.to_floats(rows(mlx, scores, token, token + 1)).expect("they are there");
    let mut order: Vec<usize> = (0..scores.len()).collect();
    order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]));
    let odds: Vec<f32> = order[..2].iter().map(|expert| scores[*expert].exp()).collect();
    let mut sum = vec![0.0; 8];
    for (expert, odds_of) in order.into_iter().zip(&odds) {
        let of = |array: &Array| array.take_axis(Array::from_int(expert as i32), 0).expect("there are four");
        let matrix = |stack: &Experts| match &stack.matrix {
            Matrix::Dense(matrix) => Matrix::Dense(of(matrix)),
            Matrix::Packed(Packed { packing, weight, scales, biases }) => Matrix::Packed(Packed {
                packing: *packing,
                weight: of(weight),
                scales: of(scales),
                biases: biases.as_ref().map(of),
            }),
        };
        let up = Linear { matrix: matrix(up), bias: up.bias.as_ref().map(of), adapter: None, rows: 24, columns: 64 };
        let down = Linear { matrix: matrix(down), bias: None, adapter: None, rows: 8, columns: 24 };
        let [inner] = mlx.linears(&rows(mlx, x, token, token + 1), [&up]);
        let [outer] = mlx.linears(&inner, [&down]);
        let outer = mlx.to_floats(outer).expect("the shapes fit");
        sum.iter_mut().zip(outer).for_each(|(sum, value)| *sum += value * odds_of / odds.iter().sum::<f32>());
    }
    sum
}

#[test]
fn gates_compute_their_formulas() {
    let mlx = backend();
    let (gate, up) = (mlx.scale(tensor(&mlx, 2, 31, 1), 9.0), mlx.scale(tensor(&mlx, 2, 31, 2), 9.0));
    let values = |x: &Tensor| mlx.to_floats(x.clone()).expect("they are there");
    let sigmoid = |x: f32| 1.0 / (1.0 + (-x).exp());
    let gelu = |x: f32| x / 2.0 * (1.0 + (0.797_884_6 * (x + 0.044_715 * x * x * x)).tanh());
    let clipped = |gate: f32, up: f32| {
        let gate = gate.min(7.0);
        (up.clamp(-7.0, 7.0) + 1.0) * gate * sigmoid(1.702 * gate)
    };
    let pairs: Vec<(f32, f32)> = values(&gate).into_iter().zip(values(&up)).collect();
    let expect = |found: Tensor, formula: &dyn Fn(f32, f32) -> f32| {
        let expected: Vec<f32> = pairs.iter().map(|(gate, up)| formula(*gate, *up)).collect();
        assert!(worst(&values(&found), &expected) < 1e-4);
    };
    expect(mlx.silu_gate(gate.clone(), &up), &|gate, up| gate * sigmoid(gate) * up);
    expect(mlx.gelu_gate(gate.clone(), &up), &|gate, up| gelu(gate) * up);
    expect(mlx.clipped_swiglu(gate.clone(), &up, 1.702, 7.0), &clipped);
    expect(mlx.add(gate.clone(), &up), &|gate, up| gate + up);
}

/// On Metal activations are of half precision: nothing may turn them into float32, which is half as fast.
#[test]
fn half_precision_stays_half_precision() {
    let mlx = Mlx::native();
    let half = |array: &Array| array.as_dtype(Dtype::Bfloat16).expect("it has floats");
    let halved = |x: Tensor| Tensor { array: half(&x.array), ..x };
    let x = halved(tensor(&mlx, 3, 64, 1));
    let Packed { packing, weight, scales, biases } = packed(c"affine", &[32]);
    let matrix = Matrix::Packed(Packed { packing, weight, scales: half(&scales), biases: biases.as_ref().map(half) });
    let linear = Linear {
        matrix,
        bias: Some(half(&tensor(&mlx, 1, 32, 2).array.reshape(&[32]).expect("32"))),
        // Adapters are mostly of float32.
        adapter: Some(LowRank { a: tensor(&mlx, 64, 4, 3).array, b: tensor(&mlx, 4, 32, 4).array, scale: 0.5 }),
        rows: 32,
        columns: 64,
    };
    let norm = mlx.shift(half(&ops::zeros::<f32>(&[8]).expect("8")), 1.0);
    let rope = mlx.rope_table(&[1.0, 10.0, 100.0, 1000.0]);
    let experts = Experts { matrix: Matrix::Packed(packed(c"mxfp4", &[4, 32])), bias: None, rows: 32 };

    let embedded = mlx.embed(&linear, &[3, 1]);
    let [q] = mlx.linears(&x, [&linear]);
    let q = mlx.rope(mlx.rms_norm(&q, &norm, 1e-5), &rope, 5);
    let kv = mlx.scale(halved(tensor(&mlx, 3, 16, 3)), 0.5);
    let sinks = half(&ops::zeros::<f32>(&[4]).expect("4"));
    let attended = mlx.attention(&ATTENTION, Some(&sinks), &mut mlx.cache(&ATTENTION), &q, kv.clone(), kv);
    let gated = mlx.gelu_gate(mlx.silu_gate(x.clone(), &x), &mlx.clipped_swiglu(x.clone(), &x, 1.702, 7.0));
    let routing = mlx.route(halved(tensor(&mlx, 3, 4, 4)), 2);
    let [mixed] = mlx.expert_linears(&x, [&experts], &routing);
    for (what, tensor) in [
        ("embed", embedded),
        ("rope", q.clone()),
        ("attention", mlx.last_row(&attended)),
        ("gates", mlx.add(gated, &x)),
        ("experts", mlx.combine(mixed, &routing)),
    ] {
        assert!(tensor.is_half(), "{what}");
        mlx.to_floats(tensor).expect(what);
    }
}
