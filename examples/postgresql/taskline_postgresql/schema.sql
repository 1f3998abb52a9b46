-- Messages in state 0 are ready, in state 1 wait until `due`, in state 2 are leased until `due`.
-- Times are Unix seconds. (`seq`, `deliveries`) is the receipt: `seq` is never used twice.
CREATE TABLE IF NOT EXISTS taskline_messages (
    seq        bigserial PRIMARY KEY,
    id         text     NOT NULL UNIQUE,
    queue      text     NOT NULL,
    priority   smallint NOT NULL,
    state      smallint NOT NULL,
    due        float8   NOT NULL,
    since      float8   NOT NULL,
    owner      text     NOT NULL DEFAULT '',
    deliveries integer  NOT NULL,
    lost       integer  NOT NULL DEFAULT 0,
    frame      bytea    NOT NULL
);
CREATE INDEX IF NOT EXISTS taskline_ready ON taskline_messages (queue, priority DESC, seq)
    WHERE state = 0;
CREATE INDEX IF NOT EXISTS taskline_timers ON taskline_messages (queue, due) WHERE state > 0;
CREATE INDEX IF NOT EXISTS taskline_owners ON taskline_messages (owner) WHERE state = 2;

CREATE TABLE IF NOT EXISTS taskline_dead (
    seq        bigserial PRIMARY KEY,
    id         text    NOT NULL UNIQUE,
    queue      text    NOT NULL,
    deliveries integer NOT NULL,
    letter     bytea   NOT NULL,
    frame      bytea   NOT NULL
);
CREATE INDEX IF NOT EXISTS taskline_dead_queues ON taskline_dead (queue, seq);

-- The server's time, unless a test brings its own.
CREATE OR REPLACE FUNCTION taskline_time(at float8) RETURNS float8 LANGUAGE sql AS
    $$ SELECT coalesce(at, extract(epoch FROM clock_timestamp())::float8) $$;

-- The channel on which the waiting workers of a queue listen.
CREATE OR REPLACE FUNCTION taskline_channel(queue text) RETURNS text LANGUAGE sql AS
    $$ SELECT 'taskline_' || md5(current_schema() || '.' || queue) $$;

-- Whatever makes a message ready, or due within a second, wakes those who wait.
CREATE OR REPLACE FUNCTION taskline_ring() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_notify(taskline_channel(ready.queue), '')
    FROM (SELECT DISTINCT queue FROM changed
          WHERE state = 0 OR state = 1 AND due < taskline_time(NULL) + 1) AS ready;
    RETURN NULL;
END $$;
CREATE OR REPLACE TRIGGER taskline_sent AFTER INSERT ON taskline_messages
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION taskline_ring();
CREATE OR REPLACE TRIGGER taskline_changed AFTER UPDATE ON taskline_messages
    REFERENCING NEW TABLE AS changed FOR EACH STATEMENT EXECUTE FUNCTION taskline_ring();

-- Hands over up to `most` messages. A row that another transaction works on is skipped, so that
-- no two workers wait for each other or get the same message.
CREATE OR REPLACE FUNCTION taskline_claim(
    queues text[], most integer, lease float8, consumer text, at float8
) RETURNS TABLE (
    seq bigint, id text, queue text, deliveries integer, lost integer, frame bytea
) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    now     float8 := taskline_time(at);
    name    text;
    found   integer;
BEGIN
    FOREACH name IN ARRAY queues LOOP
        WITH over AS (
            SELECT seq FROM taskline_messages
            WHERE queue = name AND state > 0 AND due <= now FOR UPDATE SKIP LOCKED
        )
        UPDATE taskline_messages AS m
        SET state = 0, owner = '', lost = lost + (state = 2)::integer
        FROM over WHERE m.seq = over.seq;

        RETURN QUERY
        WITH next AS (
            SELECT seq FROM taskline_messages WHERE queue = name AND state = 0
            ORDER BY priority DESC, seq LIMIT most FOR UPDATE SKIP LOCKED
        ), taken AS (
            UPDATE taskline_messages AS m
            SET state = 2, due = now + lease, owner = consumer, deliveries = deliveries + 1
            FROM next WHERE m.seq = next.seq
            RETURNING m.*
        )
        SELECT seq, id, queue, deliveries, lost, frame FROM taken ORDER BY priority DESC, seq;

        GET DIAGNOSTICS found = ROW_COUNT;
        most := most - found;
        EXIT WHEN most <= 0;
    END LOOP;
END $$;
