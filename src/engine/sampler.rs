//! Logits to token: penalties, temperature, top_k, typical_p, top_p, min_p, then a seeded choice. Pure.
//!
//! Meaning and arithmetic are llama.cpp's (`src/llama-sampler.cpp`), in the order that Ollama documents.

use crate::hint::Hint;
use crate::sampling::Sampling;

/// The logits can't be sampled from: the model is broken, or its arithmetic overflowed.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum SamplerError {
    /// There are none.
    #[error("the model gave no logits")]
    NoLogits,
    /// One of them is no number.
    #[error("the model gave a logit that is no number, for token {token}")]
    NotANumber {
        /// The token that it belongs to.
        token: u32,
    },
    /// The largest one is infinite, or all are minus infinity.
    #[error("the largest logit of the model is infinite")]
    Infinite,
}

impl Hint for SamplerError {
    fn hint(&self) -> Option<String> {
        Some("check the model with `tiles model verify`, or use another one".into())
    }
}

/// The random numbers of one generation: SplitMix64 (Steele, Lea, Flood 2014), so that a seed gives the same answer
/// in every version of this program.
#[derive(Clone, Debug)]
struct SplitMix64(u64);

impl SplitMix64 {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number of 53 random bits from 0 to below 1.
    fn next_unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A token that may be chosen. `p` is its probability once there is one.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    token: u32,
    logit: f32,
    p: f32,
}

/// The sampler of one generation.
#[derive(Clone, Debug)]
pub struct Sampler {
    sampling: Sampling,
    random: SplitMix64,
    /// The logits after the penalties. Kept between tokens, as the candidates are, to allocate once.
    logits: Vec<f32>,
    candidates: Vec<Candidate>,
}

impl Sampler {
    /// Makes a sampler. `seed` is the one to use; `sampling.seed` is the caller's business.
    pub fn new(sampling: &Sampling, seed: u64) -> Self {
        Self { sampling: sampling.clone(), random: SplitMix64(seed), logits: Vec::new(), candidates: Vec::new() }
    }

    /// Chooses the next token from `logits`, one a token of the vocabulary. `history` is the context so far, the prompt included.
    ///
    /// Equal logits go to the lowest token.
    ///
    /// # Errors
    /// [`SamplerError`], when there is nothing sound to choose from.
    pub fn choose(&mut self, logits: &[f32], history: &[u32]) -> Result<u32, SamplerError> {
        self.logits.clear();
        self.logits.extend_from_slice(logits);
        self.penalise(history);
        let (mut best, mut best_logit) = (None, f32::NEG_INFINITY);
        for (token, &logit) in (0u32..).zip(&self.logits) {
            if logit.is_nan() {
                return Err(SamplerError::NotANumber { token });
            }
            if best.is_none() || logit > best_logit {
                (best, best_logit) = (Some(token), logit);
            }
        }
        let best = best.ok_or(SamplerError::NoLogits)?;
        if best_logit.is_infinite() {
            return Err(SamplerError::Infinite);
        }
        let temperature = self.sampling.temperature;
        if temperature <= 0.0 {
            return Ok(best);
        }
        self.take_top_k();
        for candidate in &mut self.candidates {
            // The largest becomes 0 first: dividing by a tiny temperature then can't overflow upwards.
            candidate.logit = (candidate.logit - best_logit) / temperature;
        }
        self.normalise();
        self.keep_typical();
        self.keep_top_p();
        self.keep_min_p();
        Ok(self.draw().unwrap_or(best))
    }

    fn penalise(&mut self, history: &[u32]) {
        let Sampling { repeat_last_n, repeat_penalty, presence_penalty, frequency_penalty, .. } = self.sampling;
        let last_n = usize::try_from(repeat_last_n).unwrap_or(history.len());
        if last_n == 0 || (repeat_penalty == 1.0 && presence_penalty == 0.0 && frequency_penalty == 0.0) {
            return;
        }
        let mut seen = history[history.len().saturating_sub(last_n)..].to_vec();
        seen.sort_unstable();
        for run in seen.chunk_by(|a, b| a == b) {
            let Some(logit) = run.first().and_then(|&token| self.logits.get_mut(token as usize)) else {
                continue;
            };
            let repeated = if *logit <= 0.0 { *logit * repeat_penalty } else { *logit / repeat_penalty };
            *logit = repeated - run.len() as f32 * frequency_penalty - presence_penalty;
        }
    }

    /// Makes the `top_k` most likely tokens the candidates, most likely first.
    ///
    /// The temperature comes before this in the documented order, but it changes no ranks.
    fn take_top_k(&mut self) {
        let top_k = match self.sampling.top_k as usize {
            0 => self.logits.len(),
            top_k => top_k.min(self.logits.len()),
        };
        self.candidates.clear();
        // Twice as many as wanted are gathered, then halved: nearly all later ones are below the floor by then.
        let mut floor = None;
        for (token, &logit) in (0u32..).zip(&self.logits) {
            if floor.is_some_and(|floor| logit <= floor) {
                continue;
            }
            self.candidates.push(Candidate { token, logit, p: 0.0 });
            if self.candidates.len() >= top_k.saturating_mul(2) {
                self.candidates.select_nth_unstable_by(top_k - 1, order);
                self.candidates.truncate(top_k);
                floor = self.candidates.last().map(|last| last.logit);
            }
        }
        self.candidates.sort_unstable_by(order);
        self.candidates.truncate(top_k);
    }

    /// Keeps the tokens whose surprise is nearest to the expected one (Meister et al. 2022).
    fn keep_typical(&mut self) {
        let typical_p = self.sampling.typical_p;
        if typical_p >= 1.0 {
            return;
        }
        let surprise = |p: f32| if p > 0.0 { -p.ln() } else { f32::INFINITY };
        let entropy: f32 = self.candidates.iter().filter(|c| c.p > 0.0).map(|c| c.p * surprise(c.p)).sum();
        let distance = |c: &Candidate| (surprise(c.p) - entropy).abs();
        self.candidates.sort_by(|a, b| distance(a).total_cmp(&distance(b)));
        let len = len_reaching(&self.candidates, |sum| sum > typical_p);
        self.candidates.truncate(len);
        self.candidates.sort_unstable_by(order);
        self.normalise();
    }

    fn keep_top_p(&mut self) {
        let top_p = self.sampling.top_p;
        if top_p < 1.0 {
            let len = len_reaching(&self.candidates, |sum| sum >= top_p);
            self.candidates.truncate(len);
            self.normalise();
        }
    }

    fn keep_min_p(&mut self) {
        let least = self.sampling.min_p * self.candidates.first().map_or(0.0, |best| best.p);
        if least > 0.0 {
            self.candidates.retain(|candidate| candidate.p >= least);
            self.normalise();
        }
    }

    /// Gives the candidates, which are sorted, their probabilities.
    fn normalise(&mut self) {
        let max = self.candidates.first().map_or(0.0, |best| best.logit);
        let mut sum = 0.0;
        for candidate in &mut self.candidates {
            candidate.p = (candidate.logit - max).exp();
            sum += candidate.p;
        }
        self.candidates.iter_mut().for_each(|candidate| candidate.p /= sum);
    }

    fn draw(&mut self) -> Option<u32> {
        let mut left = self.random.next_unit();
        for candidate in &self.candidates {
            left -= f64::from(candidate.p);
            if left < 0.0 {
                return Some(candidate.token);
            }
        }
        // The probabilities add up to a little less than 1: the remainder belongs to the last one.
        self.candidates.last().map(|candidate| candidate.token)
    }
}

/// The more likely one first; of equals, the lower token.
fn order(a: &Candidate, b: &Candidate) -> std::cmp::Ordering {
    // `+ 0.0` makes the two zeros equal.
    (b.logit + 0.0).total_cmp(&(a.logit + 0.0)).then(a.token.cmp(&b.token))
}

/// How many candidates it takes, at least one, until `is_enough` holds for the sum of their probabilities.
fn len_reaching(candidates: &[Candidate], is_enough: impl Fn(f32) -> bool) -> usize {
    let mut sum = 0.0;
    for (i, candidate) in candidates.iter().enumerate() {
        sum += candidate.p;
        if is_enough(sum) {
            return i + 1;
        }
    }
    candidates.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Sampling {
        Sampling { temperature: 1.0, top_k: 0, top_p: 1.0, ..Sampling::default() }
    }

    /// Draws often, and gives each token's share.
    fn shares(sampling: &Sampling, probabilities: &[f32], history: &[u32]) -> Vec<f64> {
        let logits: Vec<f32> = probabilities.iter().map(|p| p.ln() + 3.0).collect();
        let mut sampler = Sampler::new(sampling, 7);
        let mut counts = vec![0u32; logits.len()];
        let draws = 20_000;
        for _ in 0..draws {
            counts[sampler.choose(&logits, history).expect("the logits are sound") as usize] += 1;
        }
        counts.into_iter().map(|count| f64::from(count) / f64::from(draws)).collect()
    }

    #[test]
    fn each_parameter_keeps_what_it_should() {
        let p = [0.1, 0.4, 0.2, 0.25, 0.05];
        let none: &[u32] = &[];
        // p² normalised: the temperature 0.5 squares; its square roots: 2.
        let squares = [0.0364, 0.5818, 0.1455, 0.2273, 0.0091];
        let roots = [0.1503, 0.3006, 0.2125, 0.2376, 0.1063];
        let table: &[(&str, Sampling, &[u32], [f64; 5])] = &[
            ("everything", all(), none, [0.1, 0.4, 0.2, 0.25, 0.05]),
            ("temperature .5", Sampling { temperature: 0.5, ..all() }, none, squares),
            ("temperature 2", Sampling { temperature: 2.0, ..all() }, none, roots),
            ("top_k 1", Sampling { top_k: 1, ..all() }, none, [0.0, 1.0, 0.0, 0.0, 0.0]),
            ("top_k 2", Sampling { top_k: 2, ..all() }, none, [0.0, 0.6154, 0.0, 0.3846, 0.0]),
            ("top_k 99", Sampling { top_k: 99, ..all() }, none, [0.1, 0.4, 0.2, 0.25, 0.05]),
            ("top_p .6", Sampling { top_p: 0.6, ..all() }, none, [0.0, 0.6154, 0.0, 0.3846, 0.0]),
            ("top_p .7", Sampling { top_p: 0.7, ..all() }, none, [0.0, 0.4706, 0.2353, 0.2941, 0.0]),
            ("top_p 0", Sampling { top_p: 0.0, ..all() }, none, [0.0, 1.0, 0.0, 0.0, 0.0]),
            ("min_p .5", Sampling { min_p: 0.49, ..all() }, none, [0.0, 0.4706, 0.2353, 0.2941, 0.0]),
            ("min_p 1", Sampling { min_p: 1.0, ..all() }, none, [0.0, 1.0, 0.0, 0.0, 0.0]),
            // Entropy 1.415; surprises 2.30 .92 1.61 1.39 3.00: nearest are 3 (.03), 2 (.19), 1 (.50).
            ("typical_p .2", Sampling { typical_p: 0.2, ..all() }, none, [0.0, 0.0, 0.0, 1.0, 0.0]),
            ("typical_p .3", Sampling { typical_p: 0.3, ..all() }, none, [0.0, 0.0, 0.4444, 0.5556, 0.0]),
            // Logit of token 1 is ln .4 + 3 = 2.0837; halved it is 1.0419, which weighs e^-1.0419 = .3528 as much.
            ("repeat 2", Sampling { repeat_penalty: 2.0, ..all() }, &[1], [0.1349, 0.1904, 0.2699, 0.3373, 0.0675]),
            // e^-1 of .4 is .1472 (presence), e^-2 is .0541 (frequency, seen twice).
            (
                "presence 1",
                Sampling { presence_penalty: 1.0, ..all() },
                &[1, 1],
                [0.1338, 0.1970, 0.2677, 0.3346, 0.0669],
            ),
            (
                "frequency 1",
                Sampling { frequency_penalty: 1.0, ..all() },
                &[1, 1],
                [0.1529, 0.0828, 0.3058, 0.3822, 0.0764],
            ),
            ("last 1", Sampling { frequency_penalty: 1.0, repeat_last_n: 1, ..all() }, &[1, 1, 9], p.map(f64::from)),
            ("last 0", Sampling { frequency_penalty: 1.0, repeat_last_n: 0, ..all() }, &[1, 1], p.map(f64::from)),
            (
                "all of it",
                Sampling { frequency_penalty: 1.0, repeat_last_n: -1, ..all() },
                &[1, 1],
                [0.1529, 0.0828, 0.3058, 0.3822, 0.0764],
            ),
        ];
        for (what, sampling, history, expected) in table {
            let found = shares(sampling, &p, history);
            for (found, expected) in found.iter().zip(expected) {
                let is_near = if *expected == 0.0 { *found == 0.0 } else { (found - expected).abs() < 0.012 };
                assert!(is_near, "{what}: {found} instead of {expected}");
            }
        }
    }

    #[test]
    fn temperature_0_takes_the_lowest_of_the_best() {
        let argmax = Sampling { temperature: 0.0, ..all() };
        for (logits, expected) in [
            (vec![1.0, 3.0, 3.0], 1),
            (vec![-0.0, 0.0], 0),
            (vec![f32::NEG_INFINITY, -5.0], 1),
            (vec![f32::MAX, f32::MAX], 0),
        ] {
            assert_eq!(Sampler::new(&argmax, 0).choose(&logits, &[]), Ok(expected), "{logits:?}");
        }
        let penalised = Sampling { repeat_penalty: 2.0, ..argmax };
        assert_eq!(Sampler::new(&penalised, 0).choose(&[1.0, 1.5], &[1, 77]), Ok(0));
    }

    #[test]
    fn the_most_likely_are_found_wherever_they_are() {
        let logits: Vec<f32> = (0..1000).map(|i| ((i * 7919) % 1009 / 10) as f32).collect();
        let mut sorted: Vec<u32> = (0..1000).collect();
        sorted.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        for top_k in [1, 2, 3, 40, 499, 500, 501, 999, 1000, 1001, 0] {
            let mut sampler = Sampler::new(&Sampling { top_k, ..all() }, 0);
            sampler.choose(&logits, &[]).expect("the logits are sound");
            let found: Vec<u32> = sampler.candidates.iter().map(|candidate| candidate.token).collect();
            let len = if top_k == 0 { 1000 } else { (top_k as usize).min(1000) };
            assert_eq!(found, sorted[..len], "{top_k}");
        }
    }

    #[test]
    fn a_seed_repeats_itself_and_another_differs() {
        let logits: Vec<f32> = (0..500).map(|i| (i as f32 * 0.37).sin()).collect();
        let draws = |seed| -> Vec<u32> {
            let mut sampler = Sampler::new(&all(), seed);
            (0..50).map(|_| sampler.choose(&logits, &[]).expect("the logits are sound")).collect()
        };
        assert_eq!(draws(1), draws(1));
        assert_ne!(draws(1), draws(2));
        // The generator's own first numbers for the seed 0, as its authors publish them.
        let mut random = SplitMix64(0);
        assert_eq!([random.next(), random.next()], [0xe220_a839_7b1d_cdaf, 0x6e78_9e6a_a1b9_65f4]);
    }

    #[test]
    fn unsound_logits_are_refused() {
        for (logits, error) in [
            (vec![], SamplerError::NoLogits),
            (vec![0.0, f32::NAN], SamplerError::NotANumber { token: 1 }),
            (vec![0.0, f32::INFINITY], SamplerError::Infinite),
            (vec![f32::NEG_INFINITY; 3], SamplerError::Infinite),
        ] {
            for temperature in [0.0, 0.8] {
                let sampling = Sampling { temperature, ..Sampling::default() };
                assert_eq!(Sampler::new(&sampling, 0).choose(&logits, &[]), Err(error.clone()), "{logits:?}");
            }
        }
        let tiny = Sampling { temperature: 1e-30, ..all() };
        assert_eq!(Sampler::new(&tiny, 3).choose(&[1e30, -1e30, 2e30], &[]), Ok(2));
    }
}
