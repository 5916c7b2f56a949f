-- Where each row of the journal came from. Rows that were written before this migration have no origin.
ALTER TABLE transactions
    ADD COLUMN partition int,               -- of the events topic
    ADD COLUMN record_offset bigint,        -- of the record, in its partition
    ADD COLUMN recorded_at timestamptz;     -- the record's timestamp; null where its producer gave none

ALTER TABLE waiting_sales
    ADD COLUMN recorded_at timestamptz;     -- the record's timestamp, for the journal
