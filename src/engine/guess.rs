//! Guesses at the next tokens, which a step checks together: where they are what the model chooses anyway, one step makes
//! several tokens. Every token is still drawn from the model's own distribution, so answers do not change.

/// The longest run of tokens that is looked for, and the shortest.
const LONGEST: usize = 4;
const SHORTEST: usize = 2;

/// Up to `most` tokens that followed the last place where the text ended as it ends now ("prompt look-up"): good where an
/// answer quotes its prompt or itself. Empty where it never did.
pub fn look_up(tokens: &[u32], most: usize) -> &[u32] {
    for n in (SHORTEST..=LONGEST).rev() {
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
    use super::look_up;

    #[test]
    fn the_longest_and_latest_match_decides() {
        assert_eq!(look_up(&[1, 2, 3, 4, 5, 1, 2, 3], 2), [4, 5]);
        assert_eq!(look_up(&[1, 2, 7, 9, 1, 2, 8, 9, 1, 2], 3), [8, 9, 1]);
        assert_eq!(look_up(&[5, 1, 2, 7, 1, 2, 8, 5, 1, 2], 1), [7]);
        assert_eq!(look_up(&[3, 3, 3], 4), [3]);
    }

    #[test]
    fn new_text_gives_no_guess() {
        assert!(look_up(&[1, 2, 3, 4], 4).is_empty());
        assert!(look_up(&[1], 4).is_empty());
        assert!(look_up(&[], 4).is_empty());
    }
}
