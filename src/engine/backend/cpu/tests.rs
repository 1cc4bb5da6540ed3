//! Kernels of every instruction set against plain float64 arithmetic.

use super::kernels::{HeadTask, TILE};
use super::matrix::{Form, MXFP4_GROUP};
use super::memory::Arena;
use super::*;
use crate::engine::checkpoint::Dtype;

/// Numbers that look random and are the same in every run (xorshift).
struct Noise(u64);

impl Noise {
    fn bits(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Within -1 to 1.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.float()).collect()
    }
}

const PARTS: [Dtype; 3] = [Dtype::F16, Dtype::BF16, Dtype::F32];

fn stored(values: &[f32], dtype: Dtype) -> Vec<u8> {
    let one = |value: &f32| match dtype {
        Dtype::F16 => half::f16::from_f32(*value).to_le_bytes().to_vec(),
        Dtype::BF16 => half::bf16::from_f32(*value).to_le_bytes().to_vec(),
        _ => value.to_le_bytes().to_vec(),
    };
    values.iter().flat_map(one).collect()
}

fn matrix(noise: &mut Noise, rows: usize, columns: usize, form: Form, lanes: usize) -> Linear {
    let mut matrix = Matrix::zeros(rows, columns, form, lanes, &mut Arena::default());
    match form {
        Form::Affine { bits, group_size, parts } => {
            let codes: Vec<u8> = (0..rows * columns * bits / 8).map(|_| noise.bits() as u8).collect();
            matrix.set_codes(0, &codes, bits);
            for part in 0..2 {
                let values = noise.floats(rows * columns / group_size);
                matrix.set_parts(0, &stored(&values, parts), part);
            }
        }
        Form::Mxfp4 => {
            let codes: Vec<u8> = (0..rows * columns / 2).map(|_| noise.bits() as u8).collect();
            matrix.set_codes(0, &codes, 4);
            let exponents: Vec<u8> =
                (0..rows * columns / MXFP4_GROUP).map(|_| 120 + (noise.bits() % 9) as u8).collect();
            matrix.set_exponents(0, &exponents);
        }
        Form::Dense(dtype) => matrix.set_floats(0, &stored(&noise.floats(rows * columns), dtype)),
    }
    Linear { matrix, bias: None, adapter: None }
}

fn cpu(kernels: Kernels, threads: usize, activations: Activations) -> Cpu {
    Cpu { kernels, pool: RefCell::new(Pool::new(threads)), activations, order: RefCell::default() }
}

/// Compares `x · matrixᵀ` with float64, within what 16-bit activations and float32 sums may lose.
fn assert_product(x: &Tensor, linear: &Linear, found: &Tensor, integer: bool, what: &str) {
    let matrix = &linear.matrix;
    let group_size = match matrix.form {
        Form::Affine { group_size, .. } => group_size,
        Form::Mxfp4 => MXFP4_GROUP,
        Form::Dense(_) => matrix.columns,
    };
    assert_eq!((found.rows, found.width), (x.rows, matrix.rows), "{what}");
    let mut weights = vec![0.0; matrix.columns];
    for row in 0..matrix.rows {
        matrix.dequantise_row(row, &mut weights);
        for token in 0..x.rows {
            let (mut sum, mut size, mut lost) = (0.0_f64, 0.0_f64, 0.0_f64);
            for (x, weights) in x.row(token).chunks(group_size).zip(weights.chunks(group_size)) {
                let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
                for (x, weight) in x.iter().zip(weights) {
                    sum += f64::from(*x) * f64::from(*weight);
                    size += f64::from((x * weight).abs());
                    lost += f64::from(weight.abs()) * f64::from(largest) / 65_534.0;
                }
            }
            // A quantised weight is a code times a scale plus a bias: larger terms than the weight itself may cancel.
            let tolerance = 4e-6 * (size + 256.0) + if integer { lost } else { 0.0 };
            let difference = (f64::from(found.row(token)[row]) - sum).abs();
            assert!(difference <= tolerance, "{what}: row {row}, token {token}: {difference} above {tolerance}");
        }
    }
}

#[test]
fn quantised_matrices_multiply_as_float64_does() {
    let mut noise = Noise(1);
    let mut checked = 0;
    for kernels in Kernels::all() {
        for (bits, group_size) in [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)] {
            for parts in PARTS {
                let form = Form::Affine { bits, group_size, parts };
                let linear = matrix(&mut noise, 2 * kernels.lanes + 5, 256, form, kernels.lanes);
                for activations in [Activations::Int16, Activations::Float32] {
                    let cpu = cpu(kernels, 1, activations);
                    for tokens in [1, 2, 3, 4, 5, 6, 7, 8, 11, 27] {
                        let x = Tensor { rows: tokens, width: 256, values: noise.floats(tokens * 256) };
                        let [found] = cpu.linears(&x, [&linear]);
                        let what = format!("{} {form:?} {activations:?}, {tokens} tokens", kernels.name);
                        assert_product(&x, &linear, &found, activations == Activations::Int16, &what);
                        checked += 1;
                    }
                }
            }
        }
    }
    assert_eq!(checked, Kernels::all().len() * 6 * 3 * 2 * 10);
}

/// The sums of a group are whole numbers of 32 bits: the largest ones must fit.
#[test]
fn the_largest_codes_and_activations_fit() {
    for kernels in Kernels::all() {
        for (bits, group_size) in [(4, 32), (4, 64), (4, 128), (8, 32), (8, 64), (8, 128)] {
            let form = Form::Affine { bits, group_size, parts: Dtype::F32 };
            let mut matrix = Matrix::zeros(16, 256, form, kernels.lanes, &mut Arena::default());
            matrix.set_codes(0, &vec![0xFF; 16 * 256 * bits / 8], bits);
            for (part, value) in [(0, 1.0), (1, 0.0)] {
                matrix.set_parts(0, &stored(&vec![value; 16 * 256 / group_size], Dtype::F32), part);
            }
            let linear = Linear { matrix, bias: None, adapter: None };
            for tokens in [1, 2, 4, 8, 12] {
                for x in [1.0, -1.0] {
                    let activations = Tensor { rows: tokens, width: 256, values: vec![x; tokens * 256] };
                    let [found] = cpu(kernels, 1, Activations::Int16).linears(&activations, [&linear]);
                    let exact = x * 256.0 * ((1 << bits) - 1) as f32;
                    let near = found.values.iter().all(|value| (value - exact).abs() <= exact.abs() * 1e-5);
                    assert!(near, "{} {form:?} {tokens} tokens: {:?}", kernels.name, found.values);
                }
            }
        }
    }
}

#[test]
fn mxfp4_matrices_multiply_as_float64_does() {
    let mut noise = Noise(8);
    for kernels in Kernels::all() {
        let linear = matrix(&mut noise, 2 * kernels.lanes + 5, 256, Form::Mxfp4, kernels.lanes);
        for activations in [Activations::Int16, Activations::Float32] {
            for tokens in [1, 2, 7, 8, 11, 27] {
                let x = Tensor { rows: tokens, width: 256, values: noise.floats(tokens * 256) };
                let [found] = cpu(kernels, 1, activations).linears(&x, [&linear]);
                let what = format!("{} {activations:?}, {tokens} tokens", kernels.name);
                assert_product(&x, &linear, &found, activations == Activations::Int16, &what);
            }
        }
    }
    // All codes and the extreme exponents mean what the format says.
    let mut linear = matrix(&mut noise, 1, 32, Form::Mxfp4, 8);
    let mut row = vec![0.0; 32];
    for exponent in [0, 1, 126, 127, 128, 251] {
        linear.matrix.set_codes(0, &(0..16).map(|i: u8| i | 15_u8.wrapping_sub(i) << 4).collect::<Vec<_>>(), 4);
        linear.matrix.set_exponents(0, &[exponent]);
        linear.matrix.dequantise_row(0, &mut row);
        let values = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        for (idx, value) in row.iter().enumerate() {
            let code = if idx % 2 == 0 { idx / 2 } else { 15 - idx / 2 };
            let exact = values[code % 8] * if code < 8 { 1.0 } else { -1.0 } * 2_f64.powi(i32::from(exponent) - 127);
            assert_eq!(f64::from(*value), exact, "code {code}, exponent {exponent}");
        }
    }
}

/// Experts chosen for each token, each over its tokens alone, weighed and added, against plain arithmetic.
#[test]
fn mixtures_are_what_float64_says() {
    let mut noise = Noise(9);
    let (experts, chosen, rows, columns) = (5, 2, 32, 64);
    for kernels in Kernels::all() {
        for form in [Form::Mxfp4, Form::Affine { bits: 4, group_size: 32, parts: Dtype::BF16 }, Form::Dense(Dtype::F32)]
        {
            let matrix = matrix(&mut noise, experts * rows, columns, form, kernels.lanes).matrix;
            let stack = Experts { matrix, bias: Some(noise.floats(experts * rows)), rows };
            for tokens in [1, 3, 40] {
                let cpu = cpu(kernels, 2, Activations::Float32);
                let x = Tensor { rows: tokens, width: columns, values: noise.floats(tokens * columns) };
                let scores = Tensor { rows: tokens, width: experts, values: noise.floats(tokens * experts) };
                let routing = cpu.route(scores.clone(), chosen);
                let [made] = cpu.expert_linears(&x, [&stack], &routing);
                assert_eq!((made.rows, made.width), (tokens * chosen, rows));
                let found = cpu.combine(made, &routing);
                for token in 0..tokens {
                    let mut best: Vec<usize> = (0..experts).collect();
                    best.sort_by(|a, b| scores.row(token)[*b].total_cmp(&scores.row(token)[*a]));
                    let weight = |expert: usize| f64::from(scores.row(token)[expert]).exp();
                    let total: f64 = best[..chosen].iter().map(|expert| weight(*expert)).sum();
                    for row in 0..rows {
                        let mut exact = 0.0;
                        for expert in &best[..chosen] {
                            let mut weights = vec![0.0; columns];
                            stack.matrix.dequantise_row(expert * rows + row, &mut weights);
                            let product: f64 =
                                weights.iter().zip(x.row(token)).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                            let bias = stack.bias.as_ref().map_or(0.0, |bias| bias[expert * rows + row]);
                            exact += (product + f64::from(bias)) * weight(*expert) / total;
                        }
                        let difference = (f64::from(found.row(token)[row]) - exact).abs();
                        assert!(difference < 1e-4, "{} {form:?} {tokens} tokens: {difference}", kernels.name);
                    }
                }
            }
        }
    }
}

#[test]
fn float_matrices_multiply_as_float64_does() {
    let mut noise = Noise(2);
    for kernels in Kernels::all() {
        for dtype in PARTS {
            // Neither the rows nor the columns are a multiple of anything.
            let linear = matrix(&mut noise, 2 * kernels.lanes + 3, 77, Form::Dense(dtype), kernels.lanes);
            for tokens in [1, 2, 3, 4, 5, 6, 7, 8, 11, 27] {
                let x = Tensor { rows: tokens, width: 77, values: noise.floats(tokens * 77) };
                let [found] = cpu(kernels, 1, Activations::Int16).linears(&x, [&linear]);
                assert_product(&x, &linear, &found, false, &format!("{} {dtype:?}, {tokens} tokens", kernels.name));
            }
        }
    }
}

/// Dividing the work otherwise changes nothing, bit by bit; matrices of several groups and a bias go in one call.
#[test]
fn any_number_of_threads_gives_the_same() {
    let mut noise = Noise(3);
    for kernels in Kernels::all() {
        let form = |bits, group_size| Form::Affine { bits, group_size, parts: Dtype::F16 };
        let mut narrow = matrix(&mut noise, 3, 128, form(4, 64), kernels.lanes);
        narrow.bias = Some(vec![1.0, 2.0, 3.0]);
        let wide = matrix(&mut noise, 333, 128, form(8, 32), kernels.lanes);
        let dense = matrix(&mut noise, 70, 128, Form::Dense(Dtype::BF16), kernels.lanes);
        let x = Tensor { rows: 9, width: 128, values: noise.floats(9 * 128) };
        let one = cpu(kernels, 1, Activations::Int16).linears(&x, [&narrow, &wide, &dense]);
        for threads in [2, 3, 7] {
            let many = cpu(kernels, threads, Activations::Int16).linears(&x, [&narrow, &wide, &dense]);
            for (one, many) in one.iter().zip(&many) {
                assert_eq!(one.values, many.values, "{} {threads}", kernels.name);
            }
        }
        let mut unbiased = one[0].clone();
        unbiased.values.chunks_exact_mut(3).for_each(|row| (0..3).for_each(|idx| row[idx] -= (idx + 1) as f32));
        assert_product(&x, &narrow, &unbiased, true, kernels.name);
    }
}

#[test]
fn groups_come_back_from_16_bits() {
    let mut noise = Noise(4);
    for kernels in Kernels::all() {
        for size in [0.0, 1e-45, 1e-41, 1e-38, 1e-3, 1.0, 1e6, 3e38] {
            let group: Vec<f32> = noise.floats(64).into_iter().map(|x| x * size).collect();
            let mut codes = vec![0; 64];
            let (scale, sum) = kernels.quantise(&group, &mut codes);
            let largest = group.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
            // Among denormals the scale itself is rounded: a whole code's worth, and nothing that a model can see.
            let tolerance = f64::from(largest) / 65_000.0 + if size < 1e-37 { 1e-37 } else { 0.0 };
            for (x, code) in group.iter().zip(&codes) {
                let back = f64::from(*code) * f64::from(scale);
                assert!((back - f64::from(*x)).abs() <= tolerance, "{} {size}: {x} became {back}", kernels.name);
            }
            let exact = codes.iter().map(|code| f64::from(*code)).sum::<f64>() * f64::from(scale);
            // Sums beyond float32 become infinite, which is seen as what is no number is.
            let overflows = exact.abs() > f64::from(f32::MAX) * 0.999;
            let near = (f64::from(sum) - exact).abs() <= exact.abs() * 1e-5 + 1e-44;
            assert!(near || overflows && sum.is_infinite(), "{} {size}: {sum} for {exact}", kernels.name);
        }
    }
}

/// What isn't a number stays visible: nobody answers with tokens that came of it.
#[test]
fn what_is_no_number_reaches_the_output() {
    let mut noise = Noise(5);
    for kernels in Kernels::all() {
        for bits in [4, 8] {
            let form = Form::Affine { bits, group_size: 64, parts: Dtype::F32 };
            let linear = matrix(&mut noise, 5, 128, form, kernels.lanes);
            for (poison, activations) in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY]
                .into_iter()
                .flat_map(|poison| [Activations::Int16, Activations::Float32].map(|activations| (poison, activations)))
            {
                for at in [0, 1, 15, 16, 63, 64, 127] {
                    let mut x = Tensor { rows: 9, width: 128, values: noise.floats(9 * 128) };
                    x.values[3 * 128 + at] = poison;
                    let [found] = cpu(kernels, 1, activations).linears(&x, [&linear]);
                    let what = format!("{} {bits} {poison} {activations:?} {at}", kernels.name);
                    assert!(found.row(3).iter().all(|value| !value.is_finite()), "{what}: {:?}", found.row(3));
                    let others = (0..9).filter(|row| *row != 3);
                    assert!(others.flat_map(|row| found.row(row)).all(|value| value.is_finite()), "{what}");
                }
            }
        }
    }
}

/// One query over `keys` and `values` `[positions, width]`, and a sink.
fn attend_exactly(query: &[f32], keys: &[f32], values: &[f32], scale: f32, sink: Option<f32>) -> Vec<f64> {
    let width = query.len();
    let scores: Vec<f64> = keys
        .chunks_exact(width)
        .map(|key| key.iter().zip(query).map(|(k, q)| f64::from(*k) * f64::from(*q)).sum::<f64>() * f64::from(scale))
        .collect();
    let sink = sink.map_or(f64::NEG_INFINITY, f64::from);
    let largest = scores.iter().copied().fold(sink, f64::max);
    let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum::<f64>() + (sink - largest).exp();
    let mut out = vec![0.0; width];
    for (score, value) in scores.iter().zip(values.chunks_exact(width)) {
        out.iter_mut().zip(value).for_each(|(out, v)| *out += (score - largest).exp() / total * f64::from(*v));
    }
    out
}

/// Every head of every token over the cache, head widths that no vector divides, windows, and one call after another.
#[test]
fn attention_is_what_float64_says() {
    let mut noise = Noise(6);
    let mut checked = 0;
    for kernels in Kernels::all() {
        for ((heads, kv_heads, head_dim, window), activations) in
            [(1, 1, 2, None), (4, 2, 10, None), (6, 2, 64, Some(5)), (3, 3, 70, Some(1)), (2, 1, 130, Some(40))]
                .into_iter()
                .flat_map(|shape| [(shape, Activations::Int16), (shape, Activations::Float32)])
        {
            let attention = Attention { heads, kv_heads, head_dim, scale: 0.7, window };
            let cpu = cpu(kernels, 2, activations);
            let sinks = (heads != 3).then(|| noise.floats(heads));
            // What 16 bits keep is what the exact result is made of.
            let kept = |value: &f32| match activations {
                Activations::Int16 => half::f16::from_f32(*value).to_f32(),
                Activations::Float32 => *value,
            };
            let mut cache = cpu.cache(&attention);
            let (mut keys, mut values) = (Vec::new(), Vec::new());
            for tokens in [1, 37, 1] {
                let mut tensor = |heads: usize| Tensor {
                    rows: tokens,
                    width: heads * head_dim,
                    values: noise.floats(tokens * heads * head_dim),
                };
                let (q, k, v) = (tensor(heads), tensor(kv_heads), tensor(kv_heads));
                let first = keys.len() / k.width;
                keys.extend(k.values.iter().map(kept));
                values.extend(v.values.iter().map(kept));
                let kv_width = k.width;
                let found = cpu.attention(&attention, sinks.as_ref(), &mut cache, &q, k, v);
                for (token, head) in (0..tokens).flat_map(|token| (0..heads).map(move |head| (token, head))) {
                    let end = first + token + 1;
                    let seen = window.map_or(0, |window| end.saturating_sub(window))..end;
                    let column = head * kv_heads / heads * head_dim;
                    let pick = |all: &[f32]| -> Vec<f32> {
                        let rows = seen.clone().map(|position| position * kv_width + column);
                        rows.flat_map(|at| all[at..at + head_dim].to_vec()).collect()
                    };
                    let span = head * head_dim..(head + 1) * head_dim;
                    let sink = sinks.as_ref().map(|sinks| sinks[head]);
                    let exact = attend_exactly(&q.row(token)[span.clone()], &pick(&keys), &pick(&values), 0.7, sink);
                    for (found, exact) in found.row(token)[span].iter().zip(&exact) {
                        let what = format!("{} {attention:?}, token {token}, head {head}", kernels.name);
                        assert!((f64::from(*found) - exact).abs() < 1e-5, "{what}: {found} for {exact}");
                        checked += 1;
                    }
                }
            }
        }
    }
    assert!(checked > 10_000);
}

/// A token's attention doesn't depend on which tile of a prompt it is in, nor on how many threads there are; a draft's is
/// bit for bit that of one token after another.
#[test]
fn tiles_dont_change_what_a_token_sees() {
    for (window, threads) in [(None, 1), (Some(7), 3), (Some(20), 2)] {
        let attention = Attention { heads: 4, kv_heads: 2, head_dim: 64, scale: 0.125, window };
        let tokens = 5 * TILE + 3;
        for kernels in Kernels::all() {
            let cpu = cpu(kernels, threads, Activations::Int16);
            let mut noise = Noise(11);
            let mut tensor = |width: usize| Tensor { rows: tokens, width, values: noise.floats(tokens * width) };
            let (q, k, v) = (tensor(256), tensor(128), tensor(128));
            let part = |x: &Tensor, rows: Range<usize>| Tensor {
                rows: rows.len(),
                width: x.width,
                values: x.values[rows.start * x.width..rows.end * x.width].to_vec(),
            };
            let in_parts = |sizes: &[usize]| {
                let (mut cache, mut found, mut first) = (cpu.cache(&attention), Vec::new(), 0);
                for size in sizes {
                    let rows = first..first + size;
                    let [q, k, v] = [&q, &k, &v].map(|x| part(x, rows.clone()));
                    found.extend(cpu.attention(&attention, None, &mut cache, &q, k, v).values);
                    first += size;
                }
                found
            };
            let whole = in_parts(&[tokens]);
            assert!(whole == in_parts(&[19, tokens - 19]), "{} {window:?}", kernels.name);
            let singly = in_parts(&[1; 5 * TILE + 3]);
            assert!(singly == in_parts(&[8, 8, 8, 8, 8, 3]), "{} {window:?}", kernels.name);
            assert!(whole.iter().zip(&singly).all(|(a, b)| (a - b).abs() < 1e-5), "{} {window:?}", kernels.name);
        }
    }
}

/// Softmax weights of single positions, read off one-hot values, are exponentials to float32's precision.
#[test]
fn softmax_weights_are_exponentials() {
    for kernels in Kernels::all() {
        for step in 0..64 {
            let scores: Vec<f32> =
                (0..16).map(|idx| if idx == 0 { 0.0 } else { -(idx * 64 + step) as f32 / 10.3 }).collect();
            let one_hot: Vec<f32> = (0..256).map(|idx| if idx / 16 == idx % 16 { 1.0 } else { 0.0 }).collect();
            let keys: Vec<f32> = scores.iter().flat_map(|score| [*score; 16]).collect();
            let query: Vec<f32> = (0..16).map(|idx| if idx == 0 { 1.0 } else { 0.0 }).collect();
            let task = HeadTask { query: &query, stride: 16, scale: 1.0, sink: None };
            let (mut weights, mut out) = ([0.0; 16], [0.0; 16]);
            kernels.attend(&task, &keys, &one_hot, &mut weights, &mut out);
            let total: f64 = scores.iter().map(|score| f64::from(*score).exp()).sum();
            for (score, weight) in scores.iter().zip(out) {
                let exact = f64::from(*score).exp() / total;
                let tolerance = if *score > -86.0 { exact * 1e-6 } else { 1e-37 };
                assert!((f64::from(weight) - exact).abs() <= tolerance, "{} {score}: {weight}", kernels.name);
            }
        }
    }
}

#[test]
fn gates_are_what_float64_says() {
    for kernels in Kernels::all() {
        let xs: Vec<f32> = (-100_000..=100_002).map(|i| i as f32 / 1_000.0).collect();
        let mut gate = xs.clone();
        kernels.silu_gate(&mut gate, &vec![1.0; xs.len()]);
        for (x, found) in xs.iter().zip(&gate) {
            let exact = f64::from(*x) / (1.0 + (-f64::from(*x)).exp());
            let tolerance = if *x > -86.0 { exact.abs() * 1e-6 } else { 1e-34 };
            assert!((f64::from(*found) - exact).abs() <= tolerance, "{}: {x} gives {found}", kernels.name);
        }
        let mut gate = xs.clone();
        kernels.gelu_gate(&mut gate, &vec![1.0; xs.len()]);
        for (x, found) in xs.iter().zip(&gate) {
            let x = f64::from(*x);
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            let exact = 0.5 * x * (1.0 + inner.tanh());
            // Far below zero the exact value cancels to nothing; the last places of the exponential are all there is.
            let tolerance = exact.abs() * 2e-5 + 1e-7;
            assert!((f64::from(*found) - exact).abs() <= tolerance, "{}: {x} gives {found}", kernels.name);
        }
        let mut gate = xs.clone();
        let ups: Vec<f32> = xs.iter().map(|x| x / 3.0).collect();
        kernels.clipped_swiglu(&mut gate, &ups, 1.702, 7.0);
        for ((x, up), found) in xs.iter().zip(&ups).zip(&gate) {
            let (x, up) = (f64::from(x.min(7.0)), f64::from(up.clamp(-7.0, 7.0)));
            let exact = (up + 1.0) * x / (1.0 + (-f64::from(1.702_f32) * x).exp());
            assert!((f64::from(*found) - exact).abs() <= exact.abs() * 1e-5 + 1e-30, "{}: {x} {found}", kernels.name);
        }
        for (gate, up) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::INFINITY, 1.0), (1.0, f32::NEG_INFINITY)] {
            let mut gates = [gate; 3];
            kernels.clipped_swiglu(&mut gates, &[up; 3], 1.702, 7.0);
            assert!(gates.iter().all(|gate| gate.is_nan()), "{}: {gate} {up}", kernels.name);
        }
        let mut gate = [2.0, f32::NAN, -1.0];
        kernels.silu_gate(&mut gate, &[3.0, 1.0, 0.0]);
        assert!((gate[0] - 5.284_782_4).abs() < 1e-5 && gate[1].is_nan() && gate[2] == 0.0, "{}", kernels.name);
    }
}

#[test]
fn norms_are_what_float64_says() {
    let mut noise = Noise(7);
    for kernels in Kernels::all() {
        for (width, size) in [(1, 1.0), (7, 1e-4), (16, 1.0), (576, 30.0), (1_001, 1e4)] {
            let x = Tensor { rows: 3, width, values: noise.floats(3 * width).iter().map(|x| x * size).collect() };
            let weight = noise.floats(width);
            let found = cpu(kernels, 1, Activations::Int16).rms_norm(&x, &weight, 1e-5);
            for row in 0..3 {
                let mean = x.row(row).iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / width as f64;
                for ((x, weight), found) in x.row(row).iter().zip(&weight).zip(found.row(row)) {
                    let exact = f64::from(*x) / (mean + 1e-5).sqrt() * f64::from(*weight);
                    assert!((f64::from(*found) - exact).abs() <= exact.abs() * 2e-6, "{} {width}", kernels.name);
                }
            }
        }
    }
}
