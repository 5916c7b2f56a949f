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
    /// For how many statistics it has not gone on, though records wait.
    standing: u32,
}

/// How many statistics say that a partition takes nothing, and not that the broker is busy.
const STUCK: u32 = 2;

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
        let stuck = self.known.iter().filter(|(_, known)| known.standing >= STUCK);
        stuck
            .map(|((topic, partition), known)| {
                let leader = if known.has_leader { "" } else { ", which has no leader" };
                format!("{topic} partition {partition}{leader}: {} records wait", known.waiting)
            })
            .collect()
    }
}

/// A partition stands when records wait for it and none was acknowledged since the last time.
fn judge(before: Option<Known>, now: &Partition) -> Known {
    let (waiting, acknowledged) = (now.msgq_cnt + now.xmit_msgq_cnt + now.msgs_inflight, now.acked_msgid);
    let before = before.filter(|before| waiting > 0 && before.waiting > 0 && before.acknowledged == acknowledged);
    let standing = before.map_or(0, |before| before.standing + 1);
    Known { waiting, acknowledged, has_leader: now.leader >= 0, standing }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_stands_when_records_wait_and_none_is_acknowledged() {
        let seen =
            |waiting, acknowledged| Partition { msgq_cnt: waiting, acked_msgid: acknowledged, ..Partition::default() };
        let first = judge(None, &seen(5, 10));
        assert_eq!(first.standing, 0, "they may have just come");
        let second = judge(Some(first), &seen(5, 10));
        assert_eq!((second.standing, judge(Some(second), &seen(6, 10)).standing), (1, 2));
        assert_eq!(judge(Some(second), &seen(0, 10)).standing, 0, "nothing waits");
        assert_eq!(judge(Some(second), &seen(5, 20)).standing, 0, "it goes on");
        assert_eq!(judge(Some(judge(None, &seen(0, 10))), &seen(5, 10)).standing, 0, "they have just come");
    }
}
