//! What operators read.
#![cfg(feature = "tracing")]

use std::{
    io,
    sync::{Arc, Mutex},
};

use rate_limit::{HOUR, Limiter, Quota};

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Log {
    fn lines(&self) -> Vec<String> {
        let log = String::from_utf8(self.0.lock().unwrap().clone()).unwrap();
        log.lines().map(str::to_owned).collect()
    }
}

impl io::Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[tokio::test(start_paused = true)]
async fn refusals_are_told_once_a_second_without_the_key() {
    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_max_level(tracing::Level::DEBUG)
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);

    let limiter = Limiter::new(Quota::count(1).per(HOUR)).unwrap();
    limiter.check("alice@example.org").unwrap();
    for _ in 0..100 {
        limiter.check("alice@example.org").unwrap_err();
    }
    assert_eq!(log.lines().len(), 1);
    tokio::time::advance(rate_limit::SECOND).await;
    limiter.check("alice@example.org").unwrap_err();

    let lines = log.lines();
    assert_eq!(lines.len(), 2);
    assert!(lines[0].contains("policy=\"default\""), "{}", lines[0]);
    assert!(lines[1].contains("silent=99"), "{}", lines[1]);
    assert!(lines.iter().all(|line| !line.contains("alice")));
}
