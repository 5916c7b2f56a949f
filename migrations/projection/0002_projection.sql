-- What every service that projects Kafka into these tables needs.

CREATE TABLE consumer_offsets (
    service text NOT NULL,              -- for example stock
    topic text NOT NULL,
    partition int NOT NULL,
    next_offset bigint NOT NULL,        -- the first record that is not in the tables yet
    topic_identity text NOT NULL,       -- CLUSTER/TOPIC ids by Kafka: a topic made anew is another one
    PRIMARY KEY (service, topic, partition)
) WITH (fillfactor = 50);
COMMENT ON TABLE consumer_offsets IS
    'How far each service has read. Moves in the transaction that writes what was read, so it is always right.';

CREATE TABLE outbox (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- published in this order
    service text NOT NULL,              -- who says it
    topic text NOT NULL,                -- where to
    key bytea,
    payload bytea NOT NULL,
    headers jsonb NOT NULL              -- [["name", "value"], ...]
);
COMMENT ON TABLE outbox IS
    'What services say to Kafka: written with the rows it is about, published after they are durable, deleted when acknowledged.';

CREATE TABLE relays (
    service text PRIMARY KEY,
    holder uuid NOT NULL,               -- the process that publishes this service's outbox
    held_until timestamptz NOT NULL     -- after this, another process takes over
);
COMMENT ON TABLE relays IS 'One process at a time publishes the outbox of a service, so that its order holds.';
