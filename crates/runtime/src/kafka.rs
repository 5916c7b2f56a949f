//! Kafka: every client option in one place, waiting for the broker, creating topics, and the identity
//! of a topic.

use std::{
    collections::BTreeSet,
    ffi::{CStr, CString},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, bail};
use rdkafka::{
    ClientConfig, ClientContext,
    admin::{AdminClient, AdminOptions, NewTopic, TopicReplication},
    bindings as sys,
    client::{Client, DefaultClientContext},
    error::{KafkaError, RDKafkaErrorCode},
};
use tokio_util::sync::CancellationToken;

use crate::{KafkaSettings, health::Health};

/// How long one request to the broker may take.
pub const TIMEOUT: Duration = Duration::from_secs(3);

/// The options that all clients share.
pub fn client(settings: &KafkaSettings, name: &str) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("bootstrap.servers", &settings.broker_url)
        .set("client.id", name)
        .set("reconnect.backoff.ms", "50")
        .set("reconnect.backoff.max.ms", "1000")
        .set("socket.keepalive.enable", "true");
    for (property, value) in &settings.security {
        config.set(*property, value.expose());
    }
    config
}

/// A producer that loses nothing and keeps each partition's order: idempotent, acknowledged by all
/// replicas, retrying without end while the broker is away. Chooses partitions as the Java client does.
pub fn producer(settings: &KafkaSettings, name: &str) -> ClientConfig {
    let mut config = client(settings, name);
    config
        .set("enable.idempotence", "true")
        .set("acks", "all")
        .set("message.timeout.ms", "0")
        .set("partitioner", "murmur2_random")
        .set("compression.type", "lz4")
        .set("linger.ms", "5")
        .set("batch.num.messages", "10000")
        // consumers keep whole batches in memory, decompressed, for each partition
        .set("batch.size", "262144")
        .set("queue.buffering.max.messages", "50000")
        .set("queue.buffering.max.kbytes", "16384")
        // a topic that was deleted is noticed, and created again as at the start, not by the broker's
        // defaults
        .set("allow.auto.create.topics", "false")
        .set("topic.metadata.propagation.max.ms", "5000");
    config
}

/// A consumer of a group whose offsets are kept elsewhere: it never resets silently, and never
/// commits by itself. Its queues are small, since the memory of all partitions adds up.
pub fn consumer(settings: &KafkaSettings, name: &str, group: &str) -> ClientConfig {
    let mut config = client(settings, name);
    config
        .set("group.id", group)
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("auto.offset.reset", "error")
        .set("partition.assignment.strategy", "cooperative-sticky")
        .set("session.timeout.ms", "10000")
        .set("heartbeat.interval.ms", "2000")
        .set("fetch.wait.max.ms", "100")
        .set("fetch.queue.backoff.ms", "1")
        .set("queued.min.messages", "2000")
        .set("queued.max.messages.kbytes", "384")
        .set("fetch.message.max.bytes", "131072")
        .set("fetch.max.bytes", "1048576")
        .set("enable.partition.eof", "false");
    config
}

/// Bytes of fetched records that all partitions of a consumer may keep together.
const FETCHED: usize = 20 << 20;

/// Sets what a consumer whose partitions have queues of their own keeps of each, so that the memory
/// of all `partitions` of its topics is bounded.
pub fn share_fetch_memory(consumer: &mut ClientConfig, partitions: usize) {
    let kib = (FETCHED / 1024 / partitions.max(1)).clamp(8, 384);
    consumer
        .set("queued.max.messages.kbytes", kib.to_string())
        // what is fetched is compressed: in the queue it takes several times as much
        .set("fetch.message.max.bytes", ((kib / 2).clamp(8, 128) * 1024).to_string());
}

/// Waits until the broker answers, reports that to `health`, and creates the topics that do not exist.
/// Returns the number of their partitions; returns 0 early when asked to shut down.
pub async fn ensure_topics(
    settings: &KafkaSettings,
    topics: &[&str],
    health: &Health,
    shutdown: &CancellationToken,
) -> Result<usize> {
    let admin: AdminClient<DefaultClientContext> =
        client(settings, "onhand-admin").create().context("Kafka settings")?;
    // Kafka refuses a request that names a topic twice
    let topics: BTreeSet<&str> = topics.iter().copied().collect();
    let new: Vec<_> = topics
        .iter()
        .map(|topic| {
            // the topics are the record of what happened: nothing is deleted by age
            NewTopic::new(topic, settings.partitions, TopicReplication::Fixed(settings.replication))
                .set("retention.ms", "-1")
        })
        .collect();
    let options = AdminOptions::new().operation_timeout(Some(TIMEOUT)).request_timeout(Some(TIMEOUT));
    let attempt = async {
        loop {
            match existing_topics(&admin).await {
                Err(error) => health.unhealthy("kafka", format!("waiting for {}: {error}", settings.broker_url)),
                Ok(known) => {
                    let missing: Vec<_> =
                        new.iter().filter(|topic| !known.iter().any(|(name, _)| name == topic.name)).collect();
                    if missing.is_empty() {
                        let ours = known.iter().filter(|(name, _)| topics.contains(name.as_str()));
                        return Ok(ours.map(|(_, partitions)| partitions).sum());
                    }
                    for created in admin.create_topics(missing, &options).await.unwrap_or_default() {
                        match created {
                            Ok(topic) => {
                                tracing::info!(topic, partitions = settings.partitions, "created topic")
                            }
                            Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                            Err((
                                topic,
                                code @ (RDKafkaErrorCode::InvalidReplicationFactor
                                | RDKafkaErrorCode::InvalidPartitions
                                | RDKafkaErrorCode::InvalidTopic
                                | RDKafkaErrorCode::TopicAuthorizationFailed
                                | RDKafkaErrorCode::ClusterAuthorizationFailed
                                | RDKafkaErrorCode::PolicyViolation),
                            )) => {
                                bail!(
                                    "topic {topic} does not exist and cannot be created: {code}; create it, or change KAFKA_TOPIC_PARTITIONS and KAFKA_TOPIC_REPLICATION"
                                )
                            }
                            Err((topic, code)) => {
                                health.unhealthy("kafka", format!("topic {topic} cannot be created yet: {code}"))
                            }
                        }
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let partitions = tokio::select! {
        partitions = attempt => partitions?,
        // the caller looks at `shutdown` next
        () = shutdown.cancelled() => return Ok(0),
    };
    health.healthy("kafka");
    Ok(partitions)
}

/// Every topic, with the number of its partitions.
async fn existing_topics(admin: &AdminClient<DefaultClientContext>) -> Result<Vec<(String, usize)>, KafkaError> {
    // in place: the client's answer is short, and its thread does the waiting
    let metadata = tokio::task::block_in_place(|| admin.inner().fetch_metadata(None, TIMEOUT))?;
    Ok(metadata.topics().iter().map(|topic| (topic.name().to_owned(), topic.partitions().len())).collect())
}

/// The end of a partition according to the last fetch response; sends no request. `None` before the
/// first response.
pub fn known_end<C: ClientContext>(client: &Client<C>, topic: &CStr, partition: i32) -> Option<i64> {
    let (mut low, mut high) = (-1, -1);
    // SAFETY: the client is alive while it is borrowed; the name is copied; the offsets are written.
    let error = unsafe {
        sys::rd_kafka_get_watermark_offsets(client.native_ptr(), topic.as_ptr(), partition, &mut low, &mut high)
    };
    (error == sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR && high >= 0).then_some(high)
}

/// The identity of a topic: `CLUSTER/TOPIC`, the ids that Kafka assigns to a cluster and to each topic
/// when it is created. A topic that was deleted and created again has another id. Blocks up to a few [`TIMEOUT`]s.
pub fn topic_identity<C: ClientContext>(client: &Client<C>, topic: &str) -> Result<String> {
    let cluster = client.fetch_cluster_id(TIMEOUT).context("the broker did not answer with its cluster id in time")?;
    Ok(format!("{cluster}/{}", topic_id(client.native_ptr(), topic)?))
}

/// librdkafka's DescribeTopics, which the safe wrapper does not have yet.
fn topic_id(client: *mut sys::rd_kafka_t, topic: &str) -> Result<String> {
    let name = CString::new(topic).context("a topic's name holds no NUL byte")?;
    let mut names = [name.as_ptr()];
    // SAFETY: `client` is alive while its owner is borrowed by the caller; every object made here is
    // destroyed once, after its last use; pointers read from the event die with it, after the copy.
    unsafe {
        let topics = sys::rd_kafka_TopicCollection_of_topic_names(names.as_mut_ptr(), 1);
        let options =
            sys::rd_kafka_AdminOptions_new(client, sys::rd_kafka_admin_op_t::RD_KAFKA_ADMIN_OP_DESCRIBETOPICS);
        let queue = sys::rd_kafka_queue_new(client);
        sys::rd_kafka_DescribeTopics(client, topics, options, queue);
        let event = sys::rd_kafka_queue_poll(queue, TIMEOUT.as_millis() as i32);
        let id = id_in(event, topic);
        if !event.is_null() {
            sys::rd_kafka_event_destroy(event);
        }
        sys::rd_kafka_queue_destroy(queue);
        sys::rd_kafka_AdminOptions_destroy(options);
        sys::rd_kafka_TopicCollection_destroy(topics);
        id
    }
}

/// SAFETY: `event` is null or the answer to a DescribeTopics of one topic.
unsafe fn id_in(event: *mut sys::rd_kafka_event_t, topic: &str) -> Result<String> {
    let text = |pointer| unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned();
    unsafe {
        if event.is_null() {
            bail!("the broker did not describe topic {topic} in time");
        }
        if sys::rd_kafka_event_error(event) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            bail!("describing topic {topic}: {}", text(sys::rd_kafka_event_error_string(event)));
        }
        let mut count = 0;
        let described =
            sys::rd_kafka_DescribeTopics_result_topics(sys::rd_kafka_event_DescribeTopics_result(event), &mut count);
        if count != 1 {
            return Err(anyhow!("the broker described {count} topics, not {topic} alone"));
        }
        let error = sys::rd_kafka_TopicDescription_error(*described);
        if !error.is_null() && sys::rd_kafka_error_code(error) != sys::rd_kafka_resp_err_t::RD_KAFKA_RESP_ERR_NO_ERROR {
            bail!("describing topic {topic}: {}", text(sys::rd_kafka_error_string(error)));
        }
        Ok(text(sys::rd_kafka_Uuid_base64str(sys::rd_kafka_TopicDescription_topic_id(*described))))
    }
}
