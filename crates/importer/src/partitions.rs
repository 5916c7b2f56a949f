//! Which partitions take nothing, by the statistics of the Kafka client: one of them may be offline
//! while the others go on.

use std::collections::BTreeMap;

use rdkafka::{Statistics, statistics::Partition};

/// What the last statistics said of each partition.
#[derive(Debug, Default)]
pub(crate) struct Partitions {
    known: BTreeMap<(String, i32), Known>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// Records that are not acknowledged.
    waiting: i64,
    /// The last one that is.
    acknowledged: u64,
    has_leader: bool,
    is_stuck: bool,
}

impl Partitions {
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
                let known = judge(self.known.get(&place).copied(), partition);
                (place, known)
            })
            .collect();
    }

    /// `events partition 3 (no leader)`
    pub(crate) fn stuck(&self) -> Vec<String> {
        let stuck = self.known.iter().filter(|(_, known)| known.is_stuck);
        stuck
            .map(|((topic, partition), known)| {
                let leader = if known.has_leader { "" } else { ", which has no leader" };
                format!("{topic} partition {partition}{leader}: {} records wait", known.waiting)
            })
            .collect()
    }
}

/// A partition is stuck when records wait for it and none was acknowledged since the last time.
fn judge(before: Option<Known>, now: &Partition) -> Known {
    let (waiting, acknowledged) = (now.msgq_cnt + now.xmit_msgq_cnt + now.msgs_inflight, now.acked_msgid);
    let is_stuck =
        waiting > 0 && before.is_some_and(|before| before.waiting > 0 && before.acknowledged == acknowledged);
    Known { waiting, acknowledged, has_leader: now.leader >= 0, is_stuck }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_stuck_when_records_wait_and_none_is_acknowledged() {
        let seen = |waiting, acknowledged, leader| Partition {
            msgq_cnt: waiting,
            acked_msgid: acknowledged,
            leader,
            ..Partition::default()
        };
        let first = judge(None, &seen(5, 10, -1));
        assert!(!first.is_stuck, "it may have been the first moment");
        assert!(judge(Some(first), &seen(5, 10, -1)).is_stuck);
        assert!(!judge(Some(first), &seen(0, 10, 1)).is_stuck, "nothing waits");
        assert!(!judge(Some(first), &seen(5, 20, 1)).is_stuck, "it goes on");
        assert!(!judge(Some(judge(None, &seen(0, 10, 1))), &seen(5, 10, 1)).is_stuck, "they have just come");
    }
}
