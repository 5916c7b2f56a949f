//! Whether a topic is still the one that was read before, and still holds what comes next.

use crate::ConsumerOffset;

/// What Kafka says of a partition now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) identity: String,
    /// The first offset that is there.
    pub(crate) low: i64,
    /// The offset of the next record that will be written.
    pub(crate) high: i64,
}

/// Why reading on would skip or repeat records, and what to do.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Lost {
    /// It is another topic.
    #[error("{0}")]
    Topic(String),
    /// The records that come next are not there. A broker that has just started may say so for a
    /// moment; so this is asked again before it is believed.
    #[error("{0}")]
    Records(String),
}

impl Lost {
    /// Whether asking again would not change it.
    pub(crate) fn is_certain(&self) -> bool {
        matches!(self, Lost::Topic(_))
    }
}

/// An error when reading on at `offset` would skip or repeat records. The offset must have been
/// asked for before Kafka's end, since both grow.
pub(crate) fn check(offset: &ConsumerOffset, now: &Partition) -> Result<(), Lost> {
    let ConsumerOffset { service, topic, partition, next_offset, topic_identity } = offset;
    let remedy = format!(
        "see where things stand with `onhand offsets`; to begin at the topic's first record, stop {service} and run \
         `onhand offsets --forget {service} --topic {topic}` (what was applied stays, and its ids keep it from being applied again)"
    );
    if *topic_identity != now.identity {
        let what = if topic_identity.split('/').next() == now.identity.split('/').next() {
            "was deleted and created again"
        } else {
            "is on another Kafka cluster"
        };
        return Err(Lost::Topic(format!(
            "topic {topic} {what} since {service} read it: its offsets mean nothing here; {remedy}"
        )));
    }
    if *next_offset < now.low {
        return Err(Lost::Records(format!(
            "topic {topic} partition {partition}: records {next_offset} to {} were deleted before {service} read them \
             (retention); bring them back by importing their files again, and {remedy}",
            now.low - 1
        )));
    }
    if *next_offset > now.high {
        return Err(Lost::Records(format!(
            "topic {topic} partition {partition} ends at {}, but {service} has read up to {next_offset}: it lost records; {remedy}",
            now.high
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offset() -> ConsumerOffset {
        ConsumerOffset {
            service: "stock".into(),
            topic: "events".into(),
            partition: 2,
            next_offset: 10,
            topic_identity: "c1/t1".into(),
        }
    }

    fn partition(identity: &str, low: i64, high: i64) -> Partition {
        Partition { identity: identity.into(), low, high }
    }

    fn complaint(now: &Partition) -> String {
        check(&offset(), now).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_same_topic_that_still_holds_the_next_record_is_read_on() {
        for (low, high) in [(0, 10), (10, 10), (10, 99)] {
            assert!(check(&offset(), &partition("c1/t1", low, high)).is_ok());
        }
    }

    #[test]
    fn another_topic_another_cluster_and_lost_records_stop_the_service_and_say_so() {
        assert!(complaint(&partition("c1/t2", 0, 99)).starts_with("topic events was deleted and created again"));
        assert!(complaint(&partition("c2/t1", 0, 99)).starts_with("topic events is on another Kafka cluster"));
        assert!(
            complaint(&partition("c1/t1", 11, 99)).contains("records 10 to 10 were deleted before stock read them")
        );
        assert!(complaint(&partition("c1/t1", 0, 9)).contains("ends at 9, but stock has read up to 10"));
    }

    #[test]
    fn only_another_topic_is_certain_at_the_first_look() {
        let certain = |now: &Partition| check(&offset(), now).expect_err("must be refused").is_certain();
        assert_eq!(
            [("c1/t2", 0, 99), ("c2/t1", 0, 99)].map(|(id, low, high)| certain(&partition(id, low, high))),
            [true; 2]
        );
        assert_eq!([(11, 99), (0, 9)].map(|(low, high)| certain(&partition("c1/t1", low, high))), [false; 2]);
    }
}
