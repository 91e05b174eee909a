//! Long texts: encoded in pieces, of which no more are made than are asked for.
//!
//! The library keeps about a hundred bytes for every byte of a text while it encodes it, and a text as a whole would take gigabytes for
//! the sake of a few windows. Pieces overlap, and two are joined in the middle of a run of tokens that both have alike. A token
//! depends on what is near it: a boundary between two tokens that merges do not cross separates what stands on its two sides.

use std::ops::Range;

use super::{ModelError, OpenText, Tokenizer};

/// Bytes of a piece without its overlap with the next: some 30 MB while it is encoded.
const PIECE: usize = 256 << 10;
/// Bytes that two pieces share.
const OVERLAP: usize = 8 << 10;
/// Tokens in a row that both must have alike in what they share. Words, and runs of blanks, are shorter.
const ALIKE: usize = 32;

/// The tokens of a piece: the number and the first byte in the whole text, of those that no template added.
struct Piece {
    /// Ids that the template puts before a text.
    opening: Vec<u32>,
    tokens: Vec<(usize, u32)>,
    closing: Vec<u32>,
}

impl Piece {
    fn of(tokenizer: &Tokenizer, text: &str, range: Range<usize>) -> Result<Self, ModelError> {
        let OpenText { ids, starts, closing } = tokenizer.encode_open(&text[range.clone()])?;
        let opening = starts.iter().take_while(|start| start.is_none()).count();
        let own = starts.iter().zip(&ids).skip(opening);
        let tokens = own.filter_map(|(start, &id)| Some((range.start + (*start)?, id))).collect();
        Ok(Self { opening: ids[..opening].to_vec(), tokens, closing })
    }
}

impl Tokenizer {
    /// The first `wanted` ids of [`Tokenizer::encode`] at least, or all where there are fewer. A long text is encoded in pieces, and only as
    /// far as is needed.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_first(&self, text: &str, wanted: usize) -> Result<Vec<u32>, ModelError> {
        self.in_pieces(text, wanted, PIECE, OVERLAP)
    }

    fn in_pieces(
        &self,
        text: &str,
        wanted: usize,
        piece: usize,
        overlap: usize,
    ) -> Result<Vec<u32>, ModelError> {
        if text.len() <= piece + overlap {
            return self.encode(text);
        }
        let mut end = boundary(text, piece + overlap);
        let mut last = Piece::of(self, text, 0..end)?;
        let mut ids = std::mem::take(&mut last.opening);
        loop {
            // Beyond the reach of the cut at the piece's end, which may change the tokens before it.
            if ids.len() + last.tokens.len() >= wanted.saturating_add(overlap) {
                ids.extend(last.tokens.iter().map(|&(_, id)| id));
                ids.truncate(wanted);
                return Ok(ids);
            }
            if end == text.len() {
                ids.extend(last.tokens.iter().map(|&(_, id)| id));
                ids.extend(last.closing);
                return Ok(ids);
            }
            let start = boundary(text, end - overlap);
            end = boundary(text, (start + piece + overlap).min(text.len()));
            let next = Piece::of(self, text, start..end)?;
            let Some((before, behind)) = join(&last.tokens, &next.tokens) else {
                // A text of one word, or of one letter: there is no place to cut it.
                return self.encode(text);
            };
            ids.extend(last.tokens[..before].iter().map(|&(_, id)| id));
            last = Piece { tokens: next.tokens[behind..].to_vec(), ..next };
        }
    }
}

/// The first place of a character at or behind a byte.
fn boundary(text: &str, at: usize) -> usize {
    (at..text.len()).find(|&i| text.is_char_boundary(i)).unwrap_or(text.len())
}

/// Where two pieces are joined: how many tokens of the first stand before that place, and of the second. The middle of the longest run of
/// tokens that both have alike.
fn join(first: &[(usize, u32)], second: &[(usize, u32)]) -> Option<(usize, usize)> {
    let shared = second.first()?.0;
    let mut i = first.iter().position(|&(start, _)| start >= shared)?;
    let (mut j, mut run) = (0, 0);
    // (tokens alike, where the run ends in the first, and in the second)
    let mut longest = (0, 0, 0);
    while let (Some(a), Some(b)) = (first.get(i), second.get(j)) {
        if a == b {
            (i, j, run) = (i + 1, j + 1, run + 1);
            longest = longest.max((run, i, j));
            continue;
        }
        run = 0;
        match a.0.cmp(&b.0) {
            std::cmp::Ordering::Less => i += 1,
            std::cmp::Ordering::Greater => j += 1,
            std::cmp::Ordering::Equal => (i, j) = (i + 1, j + 1),
        }
    }
    let (run, i, j) = longest;
    let (i, j) = (i.checked_sub(run / 2)?, j.checked_sub(run / 2)?);
    // Not between two tokens of one character.
    let whole = first.get(i).zip(i.checked_sub(1).and_then(|i| first.get(i))).is_some_and(|(a, b)| a.0 > b.0);
    (run >= ALIKE && whole).then_some((i, j))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::model::Architecture;

    fn tokenizer(folder: &str) -> Tokenizer {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        Tokenizer::open(&folder, &Architecture::read(&folder).unwrap()).unwrap()
    }

    /// Any cut gives the ids of the whole text; where there is no place to cut, the text is encoded as a whole.
    #[test]
    fn pieces_are_the_whole() {
        let own = include_str!("long_text.rs");
        let mixed = "Straße \u{1f600}\u{4f60}\u{597d}\r\n\n\n  a\tb ...!? 1234567\u{e9}e\u{301} ".repeat(60);
        let texts = [
            own.to_string(),
            own.replace('\n', " "),
            mixed,
            "a".repeat(9000),
            "ab\n".repeat(3000),
            " \n".repeat(4000),
        ];
        for folder in ["models/village", "tests/fixtures/models/mistral_bf16"] {
            let tokenizer = tokenizer(folder);
            for text in &texts {
                let whole = tokenizer.encode(text).unwrap();
                for (piece, overlap) in [(1000, 400), (1777, 601), (4000, 1000)] {
                    let all = tokenizer.in_pieces(text, usize::MAX, piece, overlap).unwrap();
                    assert!(all == whole, "{folder}, {:.20}: pieces of {piece}", text);
                    for wanted in [0, 1, 7, 500, whole.len() - 1, whole.len()] {
                        let some = tokenizer.in_pieces(text, wanted, piece, overlap).unwrap();
                        assert!(
                            some.len() >= wanted && whole.starts_with(&some),
                            "{folder}, {:.20}: {wanted}",
                            text
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn pieces_are_joined_where_both_have_it_alike() {
        let tokens = |starts: Range<usize>, id: u32| starts.map(|i| (i, id)).collect::<Vec<_>>();
        let (first, second) = (tokens(0..100, 1), tokens(60..150, 1));
        assert_eq!(join(&first, &second), Some((80, 20)));
        assert_eq!(join(&first, &tokens(60..150, 2)), None);
        assert_eq!(join(&first, &tokens(80..150, 1)), None);
        assert_eq!(join(&first, &tokens(200..300, 1)), None);
        assert_eq!(join(&first, &[]), None);
    }
}
