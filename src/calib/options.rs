//! Which part of a file is the text.

/// What a file does not say itself.
#[derive(Clone, Default, PartialEq, Eq, Debug)]
pub struct TextOptions {
    /// The key of a JSON document that holds its text or its messages; without it `text`, `content` or `messages`, the first that is there.
    pub field: Option<String>,
    /// The column of a parquet file; without it `text`, `content` or `messages`, or the only one that holds texts.
    pub column: Option<String>,
}

/// Where a text is looked for, in this order.
pub(super) const FIELDS: [&str; 3] = ["text", "content", "messages"];
