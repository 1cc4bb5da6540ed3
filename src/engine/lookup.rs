//! Prompt lookup: where the last few tokens stood before, what followed them there is a draft of what comes next. Verified
//! in one computation, it changes how soon tokens come and never which (Saxena 2023, "Prompt Lookup Decoding").

/// How many tokens must have stood there.
const MATCH: usize = 3;
/// How many tokens are drafted: with the one before, as many as the kernels take at once.
const DRAFT: usize = 7;
/// After a draft that wasn't worth its cost, so many tokens come one by one; twice as many after the next.
const PAUSE: usize = 8;
const PAUSE_MAX: usize = 256;
/// A draft is worth its cost from so many accepted tokens on: eight tokens at once take about twice as long as one.
const WORTH: usize = 2;

/// Drafts for one answer, and what came of them.
#[derive(Clone, Debug, Default)]
pub struct Lookup {
    is_on: bool,
    /// How many tokens come without a draft.
    paused: usize,
    /// How long the next pause is.
    pause: usize,
    /// How many tokens were drafted.
    pub drafted: usize,
    /// How many of them were what the model said.
    pub accepted: usize,
}

impl Lookup {
    /// Drafts where `is_on`: a backend that computes several tokens otherwise than one after another would change answers.
    pub fn new(is_on: bool) -> Self {
        Self { is_on, pause: PAUSE, ..Self::default() }
    }

    /// Appends a draft of at most `wanted` tokens to `next`, whose one token follows `history`.
    pub fn draft(&mut self, history: &[u32], next: &mut Vec<u32>, wanted: usize) {
        if !self.is_on {
            return;
        }
        if self.paused > 0 {
            self.paused -= 1;
            return;
        }
        let Some(&last) = next.last() else { return };
        let Some(start) = history.len().checked_sub(MATCH - 1) else { return };
        let key = &history[start..];
        // The latest place: what was said last is likelier to be said again.
        let before = &history[..history.len() - 1];
        let found = before.windows(MATCH).rposition(|window| window[MATCH - 1] == last && window[..MATCH - 1] == *key);
        if let Some(at) = found {
            let from = at + MATCH;
            next.extend(history[from..].iter().take(DRAFT.min(wanted)));
        }
    }

    /// Learns that of a draft of `drafted` tokens `accepted` were right.
    pub fn verified(&mut self, drafted: usize, accepted: usize) {
        if drafted == 0 {
            return;
        }
        self.drafted += drafted;
        self.accepted += accepted;
        if accepted >= WORTH {
            self.pause = PAUSE;
        } else {
            self.paused = self.pause;
            self.pause = (self.pause * 2).min(PAUSE_MAX);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: [u32; 0] = [];

    fn draft(lookup: &mut Lookup, history: &[u32], last: u32, wanted: usize) -> Vec<u32> {
        let mut next = vec![last];
        lookup.draft(history, &mut next, wanted);
        next.split_off(1)
    }

    #[test]
    fn what_followed_before_is_drafted() {
        let drafted = |history: &[u32], last, wanted| draft(&mut Lookup::new(true), history, last, wanted);
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2], 3, 9), [4, 5, 1, 2]);
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2], 3, 2), [4, 5]);
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2], 3, 0), NOTHING);
        assert_eq!(drafted(&[1, 2, 3, 8, 1, 2, 3, 9, 0, 1, 2], 3, 1), [9], "the latest counts");
        assert_eq!(drafted(&[1, 2, 3, 4, 5, 1, 2], 4, 9), NOTHING);
        assert_eq!(drafted(&[7, 7, 7, 7], 7, 9), [7], "what repeats itself follows itself");
        assert_eq!(drafted(&(0..20).chain([0, 1]).collect::<Vec<_>>(), 2, 99).len(), DRAFT);
        for history in [&[][..], &[1], &[1, 2]] {
            assert_eq!(drafted(history, 3, 9), NOTHING);
        }
        assert_eq!(draft(&mut Lookup::new(false), &[1, 2, 3, 4, 5, 1, 2], 3, 9), NOTHING);
    }

    #[test]
    fn drafts_that_fail_become_rare() {
        let mut lookup = Lookup::new(true);
        let mut tried = 0;
        for _ in 0..1_000 {
            if !draft(&mut lookup, &[1, 2, 3, 4, 5, 1, 2], 3, 9).is_empty() {
                tried += 1;
                lookup.verified(4, 0);
            }
        }
        assert!((5..12).contains(&tried), "{tried}");
        lookup.verified(4, 4);
        lookup.paused = 0;
        assert!(
            !draft(&mut lookup, &[1, 2, 3, 4, 5, 1, 2], 3, 9).is_empty(),
            "one that was right makes it trust again"
        );
        lookup.verified(4, 3);
        assert_eq!((lookup.drafted, lookup.accepted), (4 * tried + 8, 7));
    }
}
