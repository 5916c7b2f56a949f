-- What the tests' auction needs, beside the tables of every service.
CREATE TABLE lots (
    lot bigint PRIMARY KEY,
    partition int NOT NULL,             -- whose worker closes it
    closes_at timestamptz NOT NULL,
    least bigint NOT NULL,              -- the least first bid
    highest bigint,                     -- the highest bid so far
    bidder text,                        -- who made it
    closed boolean NOT NULL DEFAULT false
);
