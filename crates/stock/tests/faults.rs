//! The stock service as processes that are killed, frozen and stopped, while events come in. The
//! result is that of an undisturbed run.

mod fixture;

use std::{
    collections::BTreeMap,
    future::pending,
    net::SocketAddr,
    process::{Child, Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use events::stock::{Movement, StockEvent};
use fixture::{Fixture, event};
use sandbox::Kafka;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A stock service in a process of its own.
struct Process(Child);

impl Process {
    fn start(fixture: &Fixture) -> Process {
        Process::start_with(fixture, &[])
    }

    fn start_with(fixture: &Fixture, variables: &[(&str, String)]) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stock"));
        command.envs(fixture.variables.iter().map(|(name, value)| (name, value))).env("LOG_LEVEL", "warn");
        command.envs(variables.iter().map(|(name, value)| (name, value)));
        Process(command.spawn().expect("a stock process"))
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child is not waited for yet, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.0.id() as libc::pid_t, signal) }, 0);
    }

    /// A number of `/proc/PID/status`.
    fn status(&self, name: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).expect("a status");
        let value =
            status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.split_whitespace().next());
        value.and_then(|value| value.parse().ok()).expect("a number")
    }

    fn threads(&self) -> u64 {
        self.status("Threads")
    }

    /// The most memory it has had.
    fn peak_mib(&self) -> u64 {
        self.status("VmHWM") / 1024
    }

    async fn end(mut self) -> ExitStatus {
        sandbox::testing::within("the process ends", async {
            loop {
                if let Some(status) = self.0.try_wait().expect("a status") {
                    return status;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        })
        .await
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Goods for 40 cards and sales of them, every tenth event sent twice.
fn history(from: u128, count: u128) -> Vec<StockEvent> {
    let one = |number: u128| match number % 4 {
        0 => event(number, Movement::Sale, (number / 4 % 40) as i64, 1),
        _ => event(number, Movement::Incoming, (number / 4 % 40) as i64, 2),
    };
    (from..from + count)
        .flat_map(|number| std::iter::repeat_n(one(number), if number % 10 == 0 { 2 } else { 1 }))
        .collect()
}

/// Every event once, with an amount that never lacks: the order does not matter.
fn amounts(events: &[StockEvent]) -> Vec<(i64, i64, i64)> {
    let mut distinct = events.to_vec();
    distinct.sort_by_key(|event| event.transaction_id);
    distinct.dedup();
    let mut amounts = BTreeMap::new();
    for event in distinct {
        let sign = if event.movement == Movement::Incoming { 1 } else { -1 };
        *amounts.entry((event.card.store, event.card.item)).or_insert(0) += sign * i64::from(event.value);
    }
    amounts.into_iter().map(|((store, item), amount)| (store, item, amount)).collect()
}

/// A store and an item, the amount in `items`, and what the journal adds up to.
type Unlike = (i64, i64, Option<i64>, Option<i64>);

/// Items whose amount is not that of their journal, or that have none; and journals without an item.
async fn unlike_their_journal(fixture: &Fixture) -> Vec<Unlike> {
    let sql = "
        SELECT coalesce(store_id, store_number), coalesce(item_id, item_number), amount, journal
        FROM items FULL JOIN (
            SELECT store_number, item_number,
                   sum(CASE event WHEN 'incoming' THEN amount ELSE -amount END)::bigint AS journal
            FROM transactions GROUP BY 1, 2
        ) AS journals ON store_number = store_id AND item_number = item_id
        WHERE amount IS DISTINCT FROM journal ORDER BY 1, 2";
    sqlx::query_as(sql).fetch_all(&fixture.pool).await.expect("items and journals")
}

async fn some_are_applied(fixture: &Fixture) {
    let before = fixture.count("transactions").await;
    fixture.until("more is applied", async || fixture.count("transactions").await > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_killed_frozen_and_added_at_any_time_change_nothing_in_the_result() {
    // the first event of each card is a sale: it must outlast the time in which nobody reads its stock
    let fixture = Fixture::new(4, &[("STOCK_BATCH_SIZE", "50"), ("STOCK_RETRY_MS", "600000")]).await;
    let mut sent = Vec::new();
    let mut send = |count: u128| {
        let events = history(sent.len() as u128 * 2, count);
        fixture.send(&events);
        sent.extend(events);
        sent.clone()
    };
    let killed = Process::start(&fixture);
    // so many that some are left when it is killed, and when the next one is frozen
    send(60_000);
    some_are_applied(&fixture).await;
    killed.signal(libc::SIGKILL);
    assert!(!killed.end().await.success());

    let frozen = Process::start(&fixture);
    some_are_applied(&fixture).await;
    frozen.signal(libc::SIGSTOP);
    // the group gives its partitions to this one when the session of the frozen one has run out
    let added = Process::start(&fixture);
    send(6_000);
    fixture.until_read().await;
    frozen.signal(libc::SIGCONT);
    let all = send(6_000);
    fixture.until_read().await;

    assert_eq!(fixture.items().await, amounts(&all));
    let (distinct, refused) = (all.len() as i64 * 10 / 11, fixture.error_records());
    assert_eq!((fixture.count("transactions").await, refused.len()), (distinct, 0));
    for process in [frozen, added] {
        process.signal(libc::SIGTERM);
        assert!(process.end().await.success());
    }
}

/// A way to Postgres on which each connection stalls between two chunks of a COPY: its address, and
/// how many connections have stalled.
async fn stalling_way_to(postgres: String) -> (SocketAddr, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a listener");
    let (address, stalled) = (listener.local_addr().expect("an address"), Arc::new(AtomicUsize::new(0)));
    let count = Arc::clone(&stalled);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(&postgres).await.expect("Postgres");
            let ((mut requests, mut to_client), (mut answers, mut to_server)) =
                (client.into_split(), server.into_split());
            tokio::spawn(async move { tokio::io::copy(&mut answers, &mut to_client).await });
            let stalled = Arc::clone(&count);
            tokio::spawn(async move {
                let (mut buffer, mut left) = (vec![0; 16 << 10], None);
                while let Ok(length @ 1..) = requests.read(&mut buffer).await {
                    if buffer[..length].windows(17).any(|word| word == b"COPY transactions") {
                        left = Some(100_000);
                    }
                    if to_server.write_all(&buffer[..length]).await.is_err() {
                        return;
                    }
                    left = left.map(|left: usize| left.saturating_sub(length));
                    if left == Some(0) {
                        stalled.fetch_add(1, Ordering::Relaxed);
                        pending::<()>().await;
                    }
                }
            });
        }
    });
    (address, stalled)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_process_frozen_in_the_middle_of_a_copy_holds_up_its_successor_for_seconds_only() {
    let fixture = Fixture::new(6, &[("STOCK_RETRY_MS", "600000")]).await;
    // the cards are there: no partition waits for another one to create the store
    let first = history(0, 1_000);
    fixture.send(&first);
    let process = Process::start(&fixture);
    fixture.until_read().await;
    process.signal(libc::SIGTERM);
    assert!(process.end().await.success());

    let second = history(1_000, 120_000);
    fixture.send(&second);
    let at = &fixture.settings.postgres;
    let (way, stalled) = stalling_way_to(format!("{}:{}", at.host, at.port)).await;
    let frozen = Process::start_with(&fixture, &[("POSTGRES_HOSTNAME", way.to_string())]);
    fixture.until("two COPYs have stalled", async || stalled.load(Ordering::Relaxed) >= 2).await;
    frozen.signal(libc::SIGSTOP);
    let waiting = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'onhand-stock'
                   AND datname = current_database() AND query LIKE 'COPY transactions%' AND wait_event = 'ClientRead'";
    fixture
        .until("Postgres waits for the rest", async || {
            sqlx::query_scalar::<_, i64>(waiting).fetch_one(&fixture.pool).await.expect("a count") >= 2
        })
        .await;
    let began = Instant::now();
    let successor = Process::start(&fixture);
    fixture.until_read().await;
    // a session of 10 s, a rebalance, 3 s of waiting for a lock
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
    frozen.signal(libc::SIGCONT);
    let third = history(400_000, 1_000);
    fixture.send(&third);
    let all = [first, second, third].concat();
    fixture.until_read().await;
    assert_eq!((fixture.items().await, fixture.error_records().len()), (amounts(&all), 0));
    for process in [frozen, successor] {
        process.signal(libc::SIGTERM);
        assert!(process.end().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_records_that_are_no_events_fit_into_the_memory_that_compose_gives() {
    let fixture = Fixture::new(6, &[]).await;
    let garbage = vec![0xff; 100_000];
    let keys: Vec<_> = (0..1_000).map(|number: u32| number.to_string()).collect();
    fixture.send_raw(keys.iter().map(|key| (key.as_bytes(), garbage.as_slice())));
    let process = Process::start(&fixture);
    fixture.until_read().await;
    let peak = process.peak_mib();
    // docker-compose.yml gives 256 MiB
    assert!(peak < 160, "{peak} MiB");
    assert_eq!(fixture.count_of_errors(), 1_000);
    process.signal(libc::SIGTERM);
    assert!(process.end().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_all_events_of_large_batches_fit_into_the_memory_that_compose_gives() {
    let fixture = Fixture::new(2, &[]).await;
    let events: Vec<_> = (0..60_000).map(|number| event(number, Movement::Incoming, (number % 50) as i64, 1)).collect();
    fixture.send(&events);
    let conflicts: Vec<_> = events.iter().map(|event| StockEvent { value: 2, ..*event }).collect();
    fixture.send(&conflicts);
    let process = Process::start(&fixture);
    fixture.until_read().await;
    let peak = process.peak_mib();
    assert!(peak < 160, "{peak} MiB");
    assert_eq!((fixture.count_of_errors(), fixture.count("transactions").await), (60_000, 60_000));
    process.signal(libc::SIGTERM);
    assert!(process.end().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thousand_partitions_take_no_more_threads_and_hardly_more_memory_than_six() {
    let fixture = Fixture::new(1_000, &[]).await;
    let events: Vec<_> = (0..50_000).map(|number| event(number, Movement::Incoming, number as i64, 1)).collect();
    fixture.send(&events);
    let process = Process::start(&fixture);
    fixture.until("all is applied", async || fixture.count("transactions").await == 50_000).await;
    let (threads, peak) = (process.threads(), process.peak_mib());
    assert!(threads < 40 && peak < 160, "{threads} threads, {peak} MiB");
    process.signal(libc::SIGTERM);
    assert!(process.end().await.success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_broker_delays_the_end_by_less_than_ten_seconds() {
    let root = tempfile::tempdir().expect("a directory");
    let broker = tokio::task::block_in_place(|| Kafka::start(root.path()).expect("Kafka"));
    let fixture = Fixture::new(3, &[("KAFKA_BROKER_URL", &broker.broker())]).await;
    fixture.send(&history(0, 100));
    let process = Process::start(&fixture);
    fixture.until_read().await;
    broker.pause();
    // what is asked of it regularly is under way
    tokio::time::sleep(Duration::from_secs(6)).await;
    let asked = Instant::now();
    process.signal(libc::SIGTERM);
    assert!(process.end().await.success());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    broker.resume();
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_it_with_status_0_within_ten_seconds() {
    let fixture = Fixture::new(3, &[("STOCK_BATCH_SIZE", "20")]).await;
    fixture.send(&history(0, 20_000));
    let process = Process::start(&fixture);
    some_are_applied(&fixture).await;
    let asked = Instant::now();
    process.signal(libc::SIGTERM);
    assert!(process.end().await.success());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    assert!(fixture.count("transactions").await < 20_000, "it was through before it was asked");
    assert_eq!(unlike_their_journal(&fixture).await, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let fixture = Fixture::new(1, &[]).await;
    // its transaction waits for this one: after the first signal it would wait some seconds more
    let mut lock = fixture.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE items IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.expect("locked");
    let process = Process::start(&fixture);
    fixture.send(&[event(1, Movement::Incoming, 3, 5)]);
    fixture
        .until("it waits", async || {
            let sql = "SELECT count(*) > 0 FROM pg_stat_activity
                       WHERE application_name = 'onhand-stock' AND datname = current_database() AND wait_event_type = 'Lock'";
            sqlx::query_scalar(sql).fetch_one(&fixture.pool).await.expect("a count")
        })
        .await;
    process.signal(libc::SIGTERM);
    process.signal(libc::SIGINT);
    let code = process.end().await.code();
    assert!(matches!(code, Some(130 | 143)), "{code:?}");
    lock.rollback().await.expect("unlocked");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_setting_stops_the_start_with_its_name_and_an_example() {
    let output = Command::new(env!("CARGO_BIN_EXE_stock"))
        .env_clear()
        .env("POSTGRES_USER", "u")
        .env("POSTGRES_PASSWORD", "p")
        .env("POSTGRES_HOSTNAME", "db:x")
        .output()
        .expect("it runs");
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "error: settings (environment variables) are not right:\n  \
         POSTGRES_HOSTNAME is \"db:x\", expected host or host:port (for example POSTGRES_HOSTNAME=localhost:5432)\n  \
         POSTGRES_DB is not set (for example POSTGRES_DB=onhand)\n"
    );
}
