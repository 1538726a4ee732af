//! Connections that have done one request and now wait, for their price in memory.

use std::{io::BufRead, time::Duration};

use crate::{Failure, Options, h1, h2load, tls};

/// Connections that are opened first and not counted: they pay for pools and for tables that grow once.
const FIRST: usize = 50;

/// Says `ready` after the first ones and at each number of `counts`, and waits for a line each time.
pub(crate) async fn run(options: &Options) -> Result<(), Failure> {
    let config = tls::config(b"h2", false)?;
    let (mut plain, mut multiplexed) = (Vec::new(), Vec::new());
    let stops = std::iter::once(FIRST).chain(options.counts.iter().map(|count| count + FIRST));
    let mut opened = 0;
    for stop in stops {
        while opened < stop {
            if options.streams > 1 {
                let send = h2load::connect(options, config.clone()).await?;
                h2load::exchange(&send, &options.path).await?;
                multiplexed.push(send);
            } else {
                let mut connection = h1::Connection::new(options)?;
                connection.exchange().await?;
                plain.push(connection);
            }
            opened += 1;
        }
        // What is still on its way (HTTP/2's settings and acknowledgements) arrives.
        tokio::time::sleep(Duration::from_millis(500)).await;
        println!("ready");
        let _ = std::io::stdin().lock().read_line(&mut String::new());
    }
    Ok(())
}
