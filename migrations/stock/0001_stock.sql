-- Stock on hand, as people query it. Written by the stock service alone.

CREATE TABLE stores (
    id bigint PRIMARY KEY               -- store_number of the events
);
COMMENT ON TABLE stores IS 'Every store that goods came in to.';

CREATE TABLE items (
    id serial PRIMARY KEY,              -- in the order in which the cards came to be
    item_id bigint NOT NULL,            -- item_number of the events
    store_id bigint NOT NULL,           -- a row of stores, written in the same transaction
    amount bigint NOT NULL CHECK (amount >= 0), -- pieces on hand now
    CONSTRAINT items_card UNIQUE (store_id, item_id)
) WITH (fillfactor = 60);               -- room on each page, so that a new amount touches no index
COMMENT ON TABLE items IS 'Stock on hand now: one row a card, which is one item at one store.';

CREATE TABLE transactions (
    transaction_id uuid PRIMARY KEY,    -- the event's identity: the same id never applies twice
    event text NOT NULL,                -- incoming or sale
    timestamp timestamptz NOT NULL,     -- when it happened, as the event says
    store_number bigint NOT NULL,
    item_number bigint NOT NULL,
    amount bigint NOT NULL              -- pieces, always positive: a sale takes them, an incoming adds them
);
COMMENT ON TABLE transactions IS 'The journal: every event that was applied, once. Nothing is ever changed here.';

CREATE TABLE waiting_sales (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, -- in the order of arrival: oldest first
    transaction_id uuid NOT NULL CONSTRAINT waiting_sales_transaction UNIQUE,
    timestamp timestamptz NOT NULL,     -- when it happened, as the event says
    store_number bigint NOT NULL,
    item_number bigint NOT NULL,
    amount bigint NOT NULL,             -- pieces it wants
    tries int NOT NULL DEFAULT 0,       -- how often the clock has tried it so far
    next_try_at timestamptz NOT NULL,   -- when the clock tries it again; stock that comes in tries it at once
    topic text NOT NULL,                -- where its record stands, for the refusal
    partition int NOT NULL,
    record_offset bigint NOT NULL,
    key bytea,
    payload bytea NOT NULL              -- the record as it came, further fields and all
);
CREATE INDEX waiting_sales_card ON waiting_sales (store_number, item_number);
CREATE INDEX waiting_sales_due ON waiting_sales (next_try_at);
COMMENT ON TABLE waiting_sales IS 'Early sales: more than was there. They wait for stock or for their last try.';
