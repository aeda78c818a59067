//! Which rows go into the next step: those of running answers first, then prompts, all within the step's budget.

use super::kv::PAGE;
use std::ops::Range;

/// What a sequence could use in a step.
#[derive(Clone, Copy, Debug)]
pub struct Need {
    /// Tokens that are not computed yet, guesses at the next ones included.
    pub rows: usize,
    /// How many of them are guesses.
    pub guesses: usize,
    /// Whether every row's logits are wanted, not just those that the next tokens come from.
    pub all_logits: bool,
}

/// What a step has room for.
#[derive(Clone, Copy, Debug)]
pub struct Budget {
    /// Tokens.
    pub rows: usize,
    /// Rows whose logits are computed.
    pub gathered: usize,
}

/// A sequence's share of a step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Share {
    /// Position among the running sequences.
    pub index: usize,
    /// Rows.
    pub rows: usize,
    /// Which of the step's gathered rows are its own. Filled in when the rows are laid out.
    pub gathered: Range<usize>,
}

/// Splits a step: one row for each running answer, then their guesses, then prompts in the given order. A prompt that a step
/// cannot finish leaves a quarter of what is left to those behind it, so that a long one does not hold up short ones.
pub fn shares(needs: &[Need], budget: Budget) -> Vec<Share> {
    let mut left = budget;
    let mut rows = vec![0; needs.len()];
    let answers = |need: &Need| need.rows == need.guesses + 1 && !need.all_logits;
    for (taken, _) in rows.iter_mut().zip(needs).filter(|(_, need)| answers(need)) {
        *taken = 1.min(left.rows).min(left.gathered);
        left.rows -= *taken;
        left.gathered -= *taken;
    }
    for (taken, need) in rows.iter_mut().zip(needs).filter(|(taken, need)| answers(need) && **taken > 0) {
        let guesses = need.guesses.min(left.rows).min(left.gathered);
        *taken += guesses;
        left.rows -= guesses;
        left.gathered -= guesses;
    }
    let prompts: Vec<usize> = (0..needs.len()).filter(|index| !answers(&needs[*index])).collect();
    for pass in 0..2 {
        for (place, &index) in prompts.iter().enumerate() {
            let need = &needs[index];
            let missing = need.rows - need.guesses - rows[index];
            let others = pass == 0 && place + 1 < prompts.len();
            let mut fair = if missing > left.rows && others { left.rows * 3 / 4 / PAGE * PAGE } else { left.rows };
            if need.all_logits {
                fair = fair.min(left.gathered);
            }
            let mut more = missing.min(fair);
            let completes = more > 0 && more == missing;
            if completes && !need.all_logits && left.gathered == 0 {
                more -= 1;
            }
            rows[index] += more;
            left.rows -= more;
            left.gathered -= if need.all_logits { more } else { usize::from(completes).min(left.gathered) };
        }
    }
    let share = |(index, rows)| Share { index, rows, gathered: 0..0 };
    rows.into_iter().enumerate().filter(|(_, rows)| *rows > 0).map(share).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(needs: &[(usize, usize)], budget: usize) -> Vec<usize> {
        let needs: Vec<Need> = needs.iter().map(|&(rows, guesses)| Need { rows, guesses, all_logits: false }).collect();
        let mut rows = vec![0; needs.len()];
        for share in shares(&needs, Budget { rows: budget, gathered: 8 }) {
            rows[share.index] = share.rows;
        }
        rows
    }

    #[test]
    fn answers_come_before_guesses_and_guesses_before_prompts() {
        assert_eq!(rows(&[(100, 0), (1, 0), (1, 0)], 10), [8, 1, 1]);
        assert_eq!(rows(&[(5, 4), (1, 0), (100, 0)], 10), [5, 1, 4]);
        assert_eq!(rows(&[(5, 4), (5, 4), (100, 0)], 4), [3, 1, 0]);
    }

    #[test]
    fn a_long_prompt_leaves_room_for_short_ones() {
        assert_eq!(rows(&[(1000, 0), (10, 0)], 128), [118, 10]);
        assert_eq!(rows(&[(1000, 0), (500, 0), (10, 0)], 128), [102, 16, 10]);
        assert_eq!(rows(&[(1000, 0)], 128), [128]);
    }

    #[test]
    fn no_more_rows_are_gathered_than_there_is_room_for() {
        let needs = [Need { rows: 6, guesses: 0, all_logits: true }, Need { rows: 1, guesses: 0, all_logits: false }];
        let list = shares(&needs, Budget { rows: 64, gathered: 4 });
        assert_eq!(list.iter().map(|share| share.rows).collect::<Vec<_>>(), [3, 1]);
        let ends = [Need { rows: 20, guesses: 0, all_logits: false }; 3];
        let list = shares(&ends, Budget { rows: 64, gathered: 2 });
        assert_eq!(list.iter().map(|share| share.rows).collect::<Vec<_>>(), [20, 20, 19]);
    }
}
