//! tokenizer.json through the `tokenizers` library, checked against the embedding.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::{Architecture, MESSAGE, ModelError, clip, quietly, read_limited};

/// More than any real tokenizer.json.
const LIMIT_BYTES: u64 = 512 << 20;

/// More bytes than any real added token. The library's automaton of them takes time by the square of their length: 40 000 bytes
/// take 15 s.
const MAX_ADDED_TOKEN: usize = 1024;

/// A tokenizer whose ids all have an embedding.
pub struct Tokenizer {
    path: PathBuf,
    inner: tokenizers::Tokenizer,
    embeddings: usize,
}

/// The tokens of a text that something follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenText {
    /// Ids of the text, behind those that the tokenizer's template puts before it.
    pub ids: Vec<u32>,
    /// First byte of the text that each of them was made of; none of those that the template added.
    pub starts: Vec<Option<usize>>,
    /// Ids that the template puts behind a text, such as one that ends it; not among `ids`.
    pub closing: Vec<u32>,
}

impl OpenText {
    /// How many of the ids stand before the text's own.
    pub fn opening(&self) -> usize {
        self.starts.iter().take_while(|start| start.is_none()).count()
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("path", &self.path).field("embeddings", &self.embeddings).finish()
    }
}

impl Tokenizer {
    /// Reads `dir/tokenizer.json`. Truncation and padding that the file may ask for are switched off, as transformers
    /// does for a plain call.
    ///
    /// # Errors
    /// [`ModelError::Read`], [`ModelError::SlowTokenizer`], [`ModelError::Tokenizer`], and [`ModelError::Vocabulary`] when it knows an id at or above the
    /// configuration's `vocab_size`.
    pub fn open(dir: &Path, config: &Architecture) -> Result<Self, ModelError> {
        let path = dir.join("tokenizer.json");
        let others = ["tokenizer.model", "tekken.json", "vocab.json", "vocab.txt"];
        if !path.exists()
            && let Some(there) = others.into_iter().find(|name| dir.join(name).is_file())
        {
            return Err(ModelError::SlowTokenizer { folder: dir.into(), there });
        }
        let remedy = "the fast tokenizer file is needed; save one with transformers' AutoTokenizer";
        let bytes = read_limited(&path, LIMIT_BYTES, remedy)?;
        let bad =
            |problem: String| ModelError::Tokenizer { path: path.clone(), problem: clip(&problem, MESSAGE) };
        // The library panics over some files that are no JSON; this also gives the better message.
        let parsed: Map<String, Value> = serde_json::from_slice(&bytes).map_err(|e| bad(e.to_string()))?;
        if let Some(length) = longest_added_token(&parsed).filter(|&length| length > MAX_ADDED_TOKEN) {
            return Err(bad(format!("an added token has {length} bytes, more than {MAX_ADDED_TOKEN}")));
        }
        drop(parsed);
        let inner = guarded(|| {
            let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)?;
            inner.with_truncation(None)?;
            inner.with_padding(None);
            Ok(inner)
        })
        .map_err(bad)?;
        let embeddings = config.vocab_size;
        let Some(highest) = inner.get_vocab(true).into_values().max() else {
            return Err(ModelError::Tokenizer { path, problem: "it has no tokens".into() });
        };
        if highest as usize >= embeddings {
            let needed = u64::from(highest) + 1;
            return Err(ModelError::Vocabulary { path, highest, needed, embeddings });
        }
        Ok(Self { path, inner, embeddings })
    }

    /// The ids of a text, with the special tokens that the file's post-processor adds (the default of Hugging Face; for
    /// most models one opening token).
    ///
    /// # Errors
    /// [`ModelError::Encode`] and [`ModelError::TokenId`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_with(text, true)
    }

    /// The ids of a text that has its special tokens in it, as a chat template writes them: none are added.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_bare(&self, text: &str) -> Result<Vec<u32>, ModelError> {
        self.encode_with(text, false)
    }

    fn encode_with(&self, text: &str, special: bool) -> Result<Vec<u32>, ModelError> {
        // The fast variant gives the same ids and leaves out the character offsets, which nothing here needs.
        let encoding = self.encoded(|| self.inner.encode_fast(text, special))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The tokens of a text that something follows, each with its place in the text.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_open(&self, text: &str) -> Result<OpenText, ModelError> {
        let encoding = self.encoded(|| self.inner.encode(text, true))?;
        let (ids, added) = (encoding.get_ids(), encoding.get_special_tokens_mask());
        let open = match added.iter().rposition(|&a| a == 0) {
            Some(last) => last + 1,
            // All are added: which of them stand before a text shows one that has tokens of its own.
            None => {
                let probe = self.encoded(|| self.inner.encode("a", true))?;
                let before = probe.get_special_tokens_mask().iter().position(|&a| a == 0);
                before.unwrap_or(0).min(ids.len())
            }
        };
        let starts =
            encoding.get_offsets().iter().zip(added).map(|(&(start, _), &a)| (a == 0).then_some(start));
        Ok(OpenText {
            ids: ids[..open].to_vec(),
            starts: starts.take(open).collect(),
            closing: ids[open..].to_vec(),
        })
    }

    /// What the library makes of a text, if all ids have an embedding.
    fn encoded(
        &self,
        work: impl FnOnce() -> tokenizers::Result<tokenizers::Encoding>,
    ) -> Result<tokenizers::Encoding, ModelError> {
        let encoding = guarded(work).map_err(|problem| ModelError::Encode {
            path: self.path.clone(),
            problem: clip(&problem, MESSAGE),
        })?;
        match encoding.get_ids().iter().find(|&&id| id as usize >= self.embeddings) {
            None => Ok(encoding),
            // A post-processor may name ids that are in no vocabulary.
            Some(&id) => {
                Err(ModelError::TokenId { path: self.path.clone(), id, embeddings: self.embeddings })
            }
        }
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// [`ModelError::Decode`].
    pub fn decode(&self, ids: &[u32]) -> Result<String, ModelError> {
        guarded(|| self.inner.decode(ids, true))
            .map_err(|problem| ModelError::Decode { path: self.path.clone(), problem })
    }

    /// A token as the vocabulary spells it.
    pub fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The number of known tokens, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }
}

/// Bytes of the longest added token.
fn longest_added_token(file: &Map<String, Value>) -> Option<usize> {
    let tokens = file.get("added_tokens")?.as_array()?;
    tokens.iter().filter_map(|token| Some(token.get("content")?.as_str()?.len())).max()
}

/// Turns a panic of the library into an error: it has some left for files whose parts contradict each other, such as a
/// template that names a special token without an id.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match quietly(work) {
        Some(result) => result.map_err(|e| e.to_string()),
        None => Err("its parts contradict each other".into()),
    }
}
