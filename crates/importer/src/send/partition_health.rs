//! Which partitions take nothing, by the statistics of the Kafka client: one of them may be offline
//! while the others go on.

use std::collections::BTreeMap;

use rdkafka::{Statistics, statistics::Partition};

/// What the last statistics said of each partition.
#[derive(Debug, Default)]
pub(crate) struct PartitionHealth {
    known: BTreeMap<(String, i32), PartitionState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartitionState {
    /// Records that are not acknowledged.
    waiting: i64,
    /// The last one that is.
    acknowledged: u64,
    has_leader: bool,
    /// For how many statistics it has not gone on, though records wait.
    idle_reports: u32,
}

/// How many statistics say that a partition takes nothing, and not that the broker is busy.
const STUCK_AFTER_REPORTS: u32 = 2;

impl PartitionHealth {
    pub(crate) fn observe(&mut self, statistics: &Statistics) {
        let partitions = statistics.topics.iter().flat_map(|(name, topic)| {
            topic
                .partitions
                .values()
                .filter(|partition| partition.partition >= 0)
                .map(move |partition| (name, partition))
        });
        self.known = partitions
            .map(|(name, partition)| {
                let place = (name.clone(), partition.partition);
                let known = next_state(self.known.get(&place).copied(), partition);
                (place, known)
            })
            .collect();
    }

    /// `events partition 3 (no leader)`
    pub(crate) fn stuck(&self) -> Vec<String> {
        let stuck = self.known.iter().filter(|(_, known)| known.idle_reports >= STUCK_AFTER_REPORTS);
        stuck
            .map(|((topic, partition), known)| {
                let leader = if known.has_leader { "" } else { ", which has no leader" };
                format!("{topic} partition {partition}{leader}: {} records wait", known.waiting)
            })
            .collect()
    }
}

/// A partition stands when records wait for it and none was acknowledged since the last time.
fn next_state(before: Option<PartitionState>, now: &Partition) -> PartitionState {
    let (waiting, acknowledged) = (now.msgq_cnt + now.xmit_msgq_cnt + now.msgs_inflight, now.acked_msgid);
    let before = before.filter(|before| waiting > 0 && before.waiting > 0 && before.acknowledged == acknowledged);
    let idle_reports = before.map_or(0, |before| before.idle_reports + 1);
    PartitionState { waiting, acknowledged, has_leader: now.leader >= 0, idle_reports }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_stands_when_records_wait_and_none_is_acknowledged() {
        let seen =
            |waiting, acknowledged| Partition { msgq_cnt: waiting, acked_msgid: acknowledged, ..Partition::default() };
        let first = next_state(None, &seen(5, 10));
        assert_eq!(first.idle_reports, 0, "they may have just come");
        let second = next_state(Some(first), &seen(5, 10));
        assert_eq!((second.idle_reports, next_state(Some(second), &seen(6, 10)).idle_reports), (1, 2));
        assert_eq!(next_state(Some(second), &seen(0, 10)).idle_reports, 0, "nothing waits");
        assert_eq!(next_state(Some(second), &seen(5, 20)).idle_reports, 0, "it goes on");
        assert_eq!(
            next_state(Some(next_state(None, &seen(0, 10))), &seen(5, 10)).idle_reports,
            0,
            "they have just come"
        );
    }
}
