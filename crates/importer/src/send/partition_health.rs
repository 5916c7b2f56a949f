//! Which partitions accept nothing, by the statistics of the Kafka client: one may be offline while the others
//! work.

use std::collections::BTreeMap;

use rdkafka::{Statistics, statistics::Partition};
use runtime::TopicPartition;

/// The state of each partition by the last statistics.
#[derive(Debug, Default)]
pub(crate) struct PartitionHealth {
    states: BTreeMap<TopicPartition, PartitionState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct PartitionState {
    /// Records that are not acknowledged.
    pending: i64,
    /// The number of the last acknowledged record.
    acknowledged: u64,
    has_leader: bool,
    /// For how many reports nothing was acknowledged although records wait.
    idle_reports: u32,
}

/// After this many reports a partition counts as stuck, rather than the broker as busy.
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
        self.states = partitions
            .map(|(name, partition)| {
                let source = TopicPartition::new(name, partition.partition);
                let state = next_state(self.states.get(&source).copied(), partition);
                (source, state)
            })
            .collect();
    }

    /// `events partition 3, which has no leader: 100 records wait`, for each stuck partition.
    pub(crate) fn stuck(&self) -> Vec<String> {
        let stuck = self.states.iter().filter(|(_, state)| state.idle_reports >= STUCK_AFTER_REPORTS);
        stuck
            .map(|(source, state)| {
                let leader = if state.has_leader { "" } else { ", which has no leader" };
                format!("{source}{leader}: {} records wait", state.pending)
            })
            .collect()
    }
}

/// A partition is idle if records wait for it and none has been acknowledged since the last report.
fn next_state(before: Option<PartitionState>, now: &Partition) -> PartitionState {
    let (pending, acknowledged) = (now.msgq_cnt + now.xmit_msgq_cnt + now.msgs_inflight, now.acked_msgid);
    let before = before.filter(|before| pending > 0 && before.pending > 0 && before.acknowledged == acknowledged);
    let idle_reports = before.map_or(0, |before| before.idle_reports + 1);
    PartitionState { pending, acknowledged, has_leader: now.leader >= 0, idle_reports }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_stuck_when_records_wait_and_none_is_acknowledged() {
        let seen =
            |waiting, acknowledged| Partition { msgq_cnt: waiting, acked_msgid: acknowledged, ..Partition::default() };
        let first = next_state(None, &seen(5, 10));
        assert_eq!(first.idle_reports, 0, "they may have just come");
        let second = next_state(Some(first), &seen(5, 10));
        assert_eq!((second.idle_reports, next_state(Some(second), &seen(6, 10)).idle_reports), (1, 2));
        assert_eq!(next_state(Some(second), &seen(0, 10)).idle_reports, 0, "nothing waits");
        assert_eq!(next_state(Some(second), &seen(5, 20)).idle_reports, 0, "records are acknowledged");
        assert_eq!(
            next_state(Some(next_state(None, &seen(0, 10))), &seen(5, 10)).idle_reports,
            0,
            "they have just come"
        );
    }
}
