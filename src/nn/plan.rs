//! Memory plans: what will be allocated, item by item, before anything is.

/// One line of a plan; `item` is the group under which the device's accounting counts the same bytes.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PlanItem {
    /// "weights", "activations", "logits", "masks", "scratch" or "staging".
    pub item: &'static str,
    /// Bytes on the device.
    pub bytes: u64,
}

impl PlanItem {
    /// A line.
    pub fn new(item: &'static str, bytes: u64) -> Self {
        Self { item, bytes }
    }
}

/// Sum of a plan.
pub fn total(items: &[PlanItem]) -> u64 {
    items.iter().map(|i| i.bytes).sum()
}
