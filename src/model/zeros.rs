//! Tensors that hold nothing but zeros where that is no accident of training: a copy or a download that broke off leaves them.

use super::{Architecture, Checkpoint, Gain, Shard};

/// Fewer bytes of tensors than this say nothing by their second half.
const MIN_BYTES: usize = 256;

/// What is suspicious, in words: a weight file whose second half is zero, or tensors other than biases that are wholly zero. Only the first
/// bytes are looked at of what is not. Gains that are one more than stored may be zero.
pub(super) fn suspicious(config: &Architecture, checkpoint: &Checkpoint) -> Option<String> {
    if let Some(shard) = checkpoint.files().iter().find(|shard| half_empty(shard)) {
        return Some(format!(
            "the second half of {} holds only zeros, as after a download that broke off; download it again, or compare its checksum",
            shard.file_name()
        ));
    }
    let one_plus = config.norm.gain == Gain::OnePlus;
    let empty = config.tensors().into_iter().filter(|spec| {
        let may_be_zero = spec.name.ends_with(".bias") || (one_plus && spec.shape.len() == 1);
        !may_be_zero && checkpoint.entry(&spec.name).is_some_and(|(shard, entry)| zeros(shard.data(entry)))
    });
    let mut names = empty.map(|spec| spec.name);
    let first = names.next()?;
    let others = match names.count() {
        0 => String::new(),
        more => format!(", and so do {more} others"),
    };
    Some(format!(
        "{first} holds only zeros{others}: a copy that broke off leaves such tensors; where blocks were switched off on purpose all is well"
    ))
}

fn half_empty(shard: &Shard) -> bool {
    let data = shard.tensor_bytes();
    data.len() >= MIN_BYTES && data.get(data.len() / 2..).is_some_and(zeros)
}

fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == 0)
}
