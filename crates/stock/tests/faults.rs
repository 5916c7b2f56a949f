//! The stock service as processes that are killed, frozen and stopped, while events come in. The
//! result is that of an undisturbed run.

mod house;

use std::{
    collections::BTreeMap,
    process::{Child, Command, ExitStatus},
    time::{Duration, Instant},
};

use events::stock::{Movement, StockEvent};
use house::{House, event};

/// A stock service in a process of its own.
struct Process(Child);

impl Process {
    fn start(house: &House) -> Process {
        let mut command = Command::new(env!("CARGO_BIN_EXE_stock"));
        command.envs(house.variables.iter().map(|(name, value)| (name, value))).env("LOG_LEVEL", "warn");
        Process(command.spawn().expect("a stock process"))
    }

    fn signal(&self, signal: libc::c_int) {
        // SAFETY: the child is not waited for yet, so the pid is its own.
        assert_eq!(unsafe { libc::kill(self.0.id() as libc::pid_t, signal) }, 0);
    }

    async fn end(mut self) -> ExitStatus {
        house::within("the process ends", async {
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

async fn some_are_applied(house: &House) {
    let before = house.count("transactions").await;
    house.until("more is applied", async || house.count("transactions").await > before).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_killed_frozen_and_added_at_any_time_change_nothing_in_the_result() {
    // the first event of each card is a sale: it must outlast the time in which nobody reads its stock
    let house = House::new(4, &[("STOCK_BATCH_SIZE", "50"), ("STOCK_RETRY_MS", "600000")]).await;
    let mut sent = Vec::new();
    let mut send = |count: u128| {
        let events = history(sent.len() as u128 * 2, count);
        house.send(&events);
        sent.extend(events);
        sent.clone()
    };
    let killed = Process::start(&house);
    send(6_000);
    some_are_applied(&house).await;
    killed.signal(libc::SIGKILL);
    assert!(!killed.end().await.success());

    let frozen = Process::start(&house);
    some_are_applied(&house).await;
    frozen.signal(libc::SIGSTOP);
    // the group gives its partitions to this one when the session of the frozen one has run out
    let added = Process::start(&house);
    send(6_000);
    house.until_read().await;
    frozen.signal(libc::SIGCONT);
    let all = send(6_000);
    house.until_read().await;

    assert_eq!(house.items().await, amounts(&all));
    let (distinct, refused) = (all.len() as i64 * 10 / 11, house.error_records());
    assert_eq!((house.count("transactions").await, refused.len()), (distinct, 0));
    for process in [frozen, added] {
        process.signal(libc::SIGTERM);
        assert!(process.end().await.success());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_under_load_ends_it_with_status_0_within_ten_seconds() {
    let house = House::new(3, &[("STOCK_BATCH_SIZE", "100")]).await;
    house.send(&history(0, 20_000));
    let process = Process::start(&house);
    some_are_applied(&house).await;
    let asked = Instant::now();
    process.signal(libc::SIGTERM);
    assert!(process.end().await.success());
    assert!(asked.elapsed() < Duration::from_secs(10), "{:?}", asked.elapsed());
    // what it finished is whole: the amounts are those of its journal
    let wrong: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM items WHERE amount <> (
             SELECT sum(CASE event WHEN 'incoming' THEN t.amount ELSE -t.amount END)
             FROM transactions t WHERE t.store_number = store_id AND t.item_number = item_id)",
    )
    .fetch_one(&house.pool)
    .await
    .expect("a count");
    assert_eq!(wrong, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_ends_it_at_once() {
    let house = House::new(1, &[]).await;
    // its transaction waits for this one: after the first signal it would wait some seconds more
    let mut lock = house.pool.begin().await.expect("a transaction");
    sqlx::query("LOCK TABLE items IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await.expect("locked");
    let process = Process::start(&house);
    house.send(&[event(1, Movement::Incoming, 3, 5)]);
    house
        .until("it waits", async || {
            let sql = "SELECT count(*) > 0 FROM pg_stat_activity
                       WHERE application_name = 'onhand-stock' AND datname = current_database() AND wait_event_type = 'Lock'";
            sqlx::query_scalar(sql).fetch_one(&house.pool).await.expect("a count")
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
