//! Guesses at the next tokens, which a step checks together: where they are what the model chooses anyway, one step makes
//! several tokens. Every token is still drawn from the model's own distribution, so answers do not change.

use std::ops::RangeInclusive;

/// Up to `most` tokens that followed the last place where the text ended as it ends now ("prompt look-up"): good where an
/// answer quotes its prompt or itself. `runs` are the lengths of endings that are looked for, the longest first. Empty where
/// the text never ended so.
pub fn look_up<'a>(tokens: &'a [u32], runs: &RangeInclusive<usize>, most: usize) -> &'a [u32] {
    for n in runs.clone().rev() {
        let Some(start) = tokens.len().checked_sub(n + 1) else { continue };
        let end = &tokens[start + 1..];
        let earlier = tokens[..tokens.len() - 1].windows(n).rposition(|window| window == end);
        if let Some(at) = earlier {
            let rest = &tokens[at + n..];
            return &rest[..rest.len().min(most)];
        }
    }
    &[]
}

#[cfg(test)]
mod tests {
    fn look_up(tokens: &[u32], most: usize) -> &[u32] {
        super::look_up(tokens, &(2..=4), most)
    }

    #[test]
    fn the_longest_and_latest_match_decides() {
        assert_eq!(look_up(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(look_up(&[1, 2, 7, 9, 1, 2, 8, 9, 1, 2], 3), [8, 9, 1]);
        assert_eq!(look_up(&[5, 1, 2, 7, 1, 2, 8, 5, 1, 2], 1), [7]);
        assert_eq!(look_up(&[3, 3, 3], 4), [3]);
    }

    #[test]
    fn runs_have_the_lengths_that_are_asked_for() {
        let tokens = [7, 2, 3, 8, 2, 3];
        assert_eq!(super::look_up(&tokens, &(1..=1), 1), [8]);
        assert!(super::look_up(&tokens, &(3..=5), 1).is_empty());
    }

    #[test]
    fn new_text_gives_no_guess() {
        assert!(look_up(&[1, 2, 3, 4], 4).is_empty());
        assert!(look_up(&[1], 4).is_empty());
        assert!(look_up(&[], 4).is_empty());
    }
}
