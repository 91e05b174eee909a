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

/// What a piece of work takes, before anything is allocated.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct MemoryPlan {
    /// Device memory at its peak.
    pub gpu: Vec<PlanItem>,
    /// Host memory at its peak, without the mapped files of the model.
    pub host: Vec<PlanItem>,
}

impl MemoryPlan {
    /// That of the two which takes more device memory, with the larger of both host memories: for what follows one another.
    #[must_use]
    pub fn or(self, other: Self) -> Self {
        let larger = |a: Vec<PlanItem>, b: Vec<PlanItem>| if total(&b) > total(&a) { b } else { a };
        Self { gpu: larger(self.gpu, other.gpu), host: larger(self.host, other.host) }
    }
}
