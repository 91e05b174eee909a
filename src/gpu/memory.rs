//! What is allocated on the device, counted.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::sync::lock;

/// What is allocated, by group of labels, and the largest sum so far.
#[derive(Default)]
pub(super) struct MemoryTracker {
    state: Mutex<MemoryState>,
}

#[derive(Default)]
struct MemoryState {
    current: u64,
    peak: u64,
    items: BTreeMap<String, u64>,
    at_peak: BTreeMap<String, u64>,
}

/// One line of a memory report.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct MemoryItem {
    /// Group of buffers ("weights", "logits", ...): the label up to its first colon.
    pub item: String,
    /// Bytes at the moment of the largest sum.
    pub bytes: u64,
}

impl MemoryTracker {
    pub(super) fn change(&self, group: &str, bytes: u64, add: bool) {
        let mut s = lock(&self.state);
        let item = s.items.entry(group.to_string()).or_default();
        if add {
            *item += bytes;
            s.current += bytes;
            if s.current > s.peak {
                s.peak = s.current;
                s.at_peak = s.items.clone();
            }
        } else {
            *item -= bytes;
            s.current -= bytes;
        }
    }

    /// Bytes allocated now.
    pub(super) fn in_use(&self) -> u64 {
        lock(&self.state).current
    }

    /// The largest sum so far.
    pub(super) fn peak(&self) -> u64 {
        lock(&self.state).peak
    }

    /// What there was at the moment of the largest sum, by group.
    pub(super) fn at_peak(&self) -> Vec<MemoryItem> {
        let state = lock(&self.state);
        let held = state.at_peak.iter().filter(|&(_, &bytes)| bytes > 0);
        held.map(|(item, &bytes)| MemoryItem { item: item.clone(), bytes }).collect()
    }
}

/// The group under which a buffer of this label is counted.
pub(super) fn group(label: &str) -> &str {
    label.split(':').next().unwrap_or(label)
}
