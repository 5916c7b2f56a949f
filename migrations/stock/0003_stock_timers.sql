-- Every rolled-back batch with new cards uses up ids, so 2^31 of them may be used up.
ALTER SEQUENCE items_id_seq AS bigint;
ALTER TABLE items ALTER COLUMN id TYPE bigint;

-- A waiting sale is tried again by the worker of the partition that it came from.
DROP INDEX waiting_sales_due;
CREATE INDEX waiting_sales_due ON waiting_sales (topic, partition, next_try_at);
