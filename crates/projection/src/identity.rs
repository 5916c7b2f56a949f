//! Whether a topic is still the one that was read before, and still holds what comes next.

use anyhow::Result;

use crate::Position;

/// What Kafka says of a partition now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Partition {
    pub(crate) identity: String,
    /// The first offset that is there.
    pub(crate) low: i64,
    /// The offset of the next record that will be written.
    pub(crate) high: i64,
}

/// An error, with what to do, when reading on at `position` would skip or repeat records.
pub(crate) fn check(position: &Position, now: &Partition) -> Result<()> {
    let Position { service, topic, partition, next_offset, topic_identity } = position;
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
        anyhow::bail!("topic {topic} {what} since {service} read it: its offsets mean nothing here; {remedy}");
    }
    if *next_offset < now.low {
        anyhow::bail!(
            "topic {topic} partition {partition}: records {next_offset} to {} were deleted before {service} read them \
             (retention); bring them back by importing their files again, and {remedy}",
            now.low - 1
        );
    }
    if *next_offset > now.high {
        anyhow::bail!(
            "topic {topic} partition {partition} ends at {}, but {service} has read up to {next_offset}: it lost records; {remedy}",
            now.high
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn position() -> Position {
        Position {
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
        check(&position(), now).expect_err("must be refused").to_string()
    }

    #[test]
    fn the_same_topic_that_still_holds_the_next_record_is_read_on() {
        for (low, high) in [(0, 10), (10, 10), (10, 99)] {
            assert!(check(&position(), &partition("c1/t1", low, high)).is_ok());
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
}
