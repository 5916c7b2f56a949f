//! Settings come from the environment, and from [`crate::env_file`] for what it leaves open. All that
//! is wrong is reported at once: the name, what was found and an example.

use std::{
    collections::{BTreeSet, HashMap},
    fmt,
    str::FromStr,
    time::Duration,
};

use crate::Secret;

/// Where settings are read from, and what was wrong with them.
pub struct Environment {
    variables: HashMap<String, String>,
    wrong: Vec<String>,
}

impl fmt::Debug for Environment {
    /// Names only: there are passwords among the values.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: BTreeSet<_> = self.variables.keys().collect();
        f.debug_struct("Environment").field("variables", &names).field("wrong", &self.wrong).finish()
    }
}

/// Settings that are missing or malformed; each line names one, with an example.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SettingsError(pub Vec<String>);

impl fmt::Display for SettingsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "settings (environment variables) are not right:\n  {}", self.0.join("\n  "))
    }
}

impl std::error::Error for SettingsError {}

impl Environment {
    /// The process's environment. A variable that is not UTF-8 counts as unset.
    pub fn of_process() -> Environment {
        let utf8 = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Environment::of(std::env::vars_os().filter_map(utf8))
    }

    /// These variables alone, for tests and for services that run in one process.
    pub fn of(variables: impl IntoIterator<Item = (String, String)>) -> Environment {
        Environment { variables: variables.into_iter().collect(), wrong: Vec::new() }
    }

    /// Sets a variable, over what is there.
    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.variables.insert(name.to_owned(), value.into());
    }

    /// The value of a variable; an empty one counts as unset.
    pub fn text(&self, name: &str) -> Option<String> {
        self.variables.get(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The value of a variable, or `default`.
    pub fn text_or(&self, name: &str, default: &str) -> String {
        self.text(name).unwrap_or_else(|| default.to_owned())
    }

    /// The value of a variable that must be set.
    pub fn required(&mut self, name: &str, example: &str) -> String {
        self.text(name).unwrap_or_else(|| {
            self.wrong.push(format!("{name} is not set (for example {name}={example})"));
            String::new()
        })
    }

    /// The value of a variable as a number or the like, or `default`; `valid` says which are allowed.
    pub fn parse_or<T: FromStr + fmt::Display>(
        &mut self,
        name: &str,
        default: T,
        expected: &str,
        valid: impl Fn(&T) -> bool,
    ) -> T {
        let Some(text) = self.text(name) else { return default };
        match text.parse() {
            Ok(value) if valid(&value) => value,
            _ => {
                self.wrong.push(format!("{name} is {text:?}, expected {expected} (for example {name}={default})"));
                default
            }
        }
    }

    /// A duration given in milliseconds.
    pub fn millis_or(&mut self, name: &str, default: u64) -> Duration {
        Duration::from_millis(
            self.parse_or(name, default, "milliseconds, 1 to 86400000", |ms| (1..=86_400_000).contains(ms)),
        )
    }

    /// Records that a setting is wrong, for a caller's own checks.
    pub fn reject(&mut self, wrong: String) {
        self.wrong.push(wrong);
    }

    /// An error with everything that was wrong with the settings read so far.
    pub fn finish(&mut self) -> Result<(), SettingsError> {
        if self.wrong.is_empty() { Ok(()) } else { Err(SettingsError(std::mem::take(&mut self.wrong))) }
    }
}

/// Which Kafka, and which topics.
#[derive(Debug, Clone)]
pub struct KafkaSettings {
    /// `KAFKA_BROKER_URL`: `host:port`, several separated by commas.
    pub broker_url: String,
    /// `KAFKA_ERRORS_TOPIC`: where refusals go.
    pub errors_topic: String,
    /// The topic of each event type, by the type's name.
    topics: Vec<(&'static str, String)>,
    /// `KAFKA_TOPIC_PARTITIONS`: of a topic that we create.
    pub partitions: i32,
    /// `KAFKA_TOPIC_REPLICATION`: of a topic that we create.
    pub replication: i32,
    /// Security settings, as librdkafka names them; there are passwords among them.
    pub security: Vec<(&'static str, Secret)>,
}

/// Security settings: the variable, librdkafka's property, and what it takes.
const SECURITY: &[(&str, &str, &[&str])] = &[
    ("KAFKA_SECURITY_PROTOCOL", "security.protocol", &["plaintext", "ssl", "sasl_plaintext", "sasl_ssl"]),
    ("KAFKA_SASL_MECHANISM", "sasl.mechanism", &["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"]),
    ("KAFKA_SASL_USERNAME", "sasl.username", &[]),
    ("KAFKA_SASL_PASSWORD", "sasl.password", &[]),
    ("KAFKA_SSL_CA_LOCATION", "ssl.ca.location", &[]),
    ("KAFKA_SSL_CERTIFICATE_LOCATION", "ssl.certificate.location", &[]),
    ("KAFKA_SSL_KEY_LOCATION", "ssl.key.location", &[]),
    ("KAFKA_SSL_KEY_PASSWORD", "ssl.key.password", &[]),
];

impl KafkaSettings {
    /// Reads `KAFKA_*`.
    pub fn read(env: &mut Environment) -> KafkaSettings {
        let broker_url = env.text_or("KAFKA_BROKER_URL", "localhost:9092");
        if broker_url.contains("://") {
            env.reject(format!(
                "KAFKA_BROKER_URL is {broker_url:?}, expected host:port without a scheme (for example KAFKA_BROKER_URL=localhost:9092)"
            ));
        }
        let mut security = Vec::new();
        for (name, property, words) in SECURITY {
            let Some(value) = env.text(name) else { continue };
            match words.iter().find(|word| word.eq_ignore_ascii_case(&value)) {
                Some(word) => security.push((*property, Secret::new(*word))),
                None if words.is_empty() => security.push((*property, Secret::new(value))),
                None => env.reject(format!(
                    "{name} is {value:?}, expected one of {} (for example {name}={})",
                    words.join(", "),
                    words[words.len() - 1]
                )),
            }
        }
        let topics = events::EVENT_TYPES
            .iter()
            .map(|event_type| (event_type.name, env.text_or(event_type.topic.0, event_type.topic.1)))
            .collect();
        KafkaSettings {
            broker_url,
            errors_topic: env.text_or("KAFKA_ERRORS_TOPIC", "errors"),
            topics,
            partitions: env
                .parse_or("KAFKA_TOPIC_PARTITIONS", 6, "a number from 1 to 10000", |n| (1..=10_000).contains(n)),
            replication: env
                .parse_or("KAFKA_TOPIC_REPLICATION", 1, "a number from 1 to 100", |n| (1..=100).contains(n)),
            security,
        }
    }

    /// The topic of an event type.
    pub fn topic_of(&self, event_type: &events::EventType) -> &str {
        let topic = self.topics.iter().find(|(name, _)| *name == event_type.name);
        topic.map_or(event_type.topic.1, |(_, topic)| topic.as_str())
    }

    /// Every topic once: those of the event types, of which several may share one, and the errors topic.
    pub fn all_topics(&self) -> Vec<&str> {
        let topics = self.topics.iter().map(|(_, topic)| topic.as_str());
        let mut all: Vec<_> = topics.chain([self.errors_topic.as_str()]).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Which database.
#[derive(Debug, Clone)]
pub struct PostgresSettings {
    /// `POSTGRES_HOSTNAME`: host, or the directory of a socket.
    pub host: String,
    /// The port after the host's colon, else 5432.
    pub port: u16,
    /// `POSTGRES_USER`.
    pub user: String,
    /// `POSTGRES_PASSWORD`.
    pub password: Secret,
    /// `POSTGRES_DB`.
    pub database: String,
}

impl fmt::Display for PostgresSettings {
    /// `user@host:port/database`, without the password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}:{}/{}", self.user, self.host, self.port, self.database)
    }
}

impl PostgresSettings {
    /// Reads `POSTGRES_*`; all four must be set.
    pub fn read(env: &mut Environment) -> PostgresSettings {
        let hostname = env.required("POSTGRES_HOSTNAME", "localhost:5432");
        let (host, port) = match hostname.rsplit_once(':') {
            Some((host, port)) => match port.parse() {
                Ok(port) => (host.to_owned(), port),
                Err(_) => {
                    env.reject(format!(
                        "POSTGRES_HOSTNAME is {hostname:?}, expected host or host:port (for example POSTGRES_HOSTNAME=localhost:5432)"
                    ));
                    (host.to_owned(), 5432)
                }
            },
            None => (hostname, 5432),
        };
        PostgresSettings {
            host,
            port,
            user: env.required("POSTGRES_USER", "onhand"),
            password: Secret::new(env.required("POSTGRES_PASSWORD", "secret")),
            database: env.required("POSTGRES_DB", "onhand"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        Environment::of(variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
    }

    #[test]
    fn everything_that_is_wrong_is_named_at_once_with_an_example() {
        let mut env = environment(&[
            ("POSTGRES_HOSTNAME", "db:many"),
            ("POSTGRES_USER", "u"),
            ("POSTGRES_DB", "d"),
            ("KAFKA_TOPIC_PARTITIONS", "0"),
            ("KAFKA_SECURITY_PROTOCOL", "tls"),
        ]);
        KafkaSettings::read(&mut env);
        PostgresSettings::read(&mut env);
        assert_eq!(
            env.finish(),
            Err(SettingsError(vec![
                r#"KAFKA_SECURITY_PROTOCOL is "tls", expected one of plaintext, ssl, sasl_plaintext, sasl_ssl (for example KAFKA_SECURITY_PROTOCOL=sasl_ssl)"#.into(),
                r#"KAFKA_TOPIC_PARTITIONS is "0", expected a number from 1 to 10000 (for example KAFKA_TOPIC_PARTITIONS=6)"#.into(),
                r#"POSTGRES_HOSTNAME is "db:many", expected host or host:port (for example POSTGRES_HOSTNAME=localhost:5432)"#.into(),
                "POSTGRES_PASSWORD is not set (for example POSTGRES_PASSWORD=secret)".into(),
            ]))
        );
    }

    #[test]
    fn no_password_is_printed() {
        let mut env = environment(&[
            ("POSTGRES_HOSTNAME", "db"),
            ("POSTGRES_USER", "u"),
            ("POSTGRES_PASSWORD", "swordfish"),
            ("POSTGRES_DB", "d"),
            ("KAFKA_SASL_USERNAME", "u"),
            ("KAFKA_SASL_PASSWORD", "swordfish"),
            ("KAFKA_SSL_KEY_PASSWORD", "swordfish"),
        ]);
        let (kafka, postgres) = (KafkaSettings::read(&mut env), PostgresSettings::read(&mut env));
        let printed = format!("{env:?} {kafka:?} {postgres:?} {postgres} {}", postgres.password);
        assert!(!printed.contains("swordfish") && printed.contains("***"), "{printed}");
        assert_eq!(postgres.password.expose(), "swordfish");
        assert!(kafka.security.contains(&("sasl.password", Secret::new("swordfish"))));
    }

    #[test]
    fn a_port_follows_the_host_after_a_colon() {
        let mut env = environment(&[
            ("POSTGRES_HOSTNAME", "db:5433"),
            ("POSTGRES_USER", "u"),
            ("POSTGRES_PASSWORD", "p"),
            ("POSTGRES_DB", "d"),
        ]);
        assert_eq!(PostgresSettings::read(&mut env).to_string(), "u@db:5433/d");
        assert_eq!(env.finish(), Ok(()));
    }
}
