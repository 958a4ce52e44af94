//! `make run`: a rack with the example shop in it, for somebody to look at.

use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use crate::demo::{Narrator, exposed_url, farm_ready};
use crate::site::Site;
use crate::timeline::Timeline;

pub async fn run() -> anyhow::Result<()> {
    let time = Timeline::new();
    let mut site = Site::start().await?;
    let mut narrator = Narrator::new(time);
    site.apply_example("blueprint", "blueprints", &[]).await?;
    site.all_idle(Duration::from_secs(30)).await?;
    site.apply_example("farm", "shop", &[]).await?;
    time.step("shop applied; its nodes boot");
    farm_ready(&mut site, &mut narrator, "shop").await?;
    println!("\n{}", site.croft(&["node", "ls"]).await?);
    println!("The shop answers at {} in the rack's internet.", exposed_url(&site).await?);
    println!("How a node came up: `croft node boot NODE`, from `make shell`.");
    println!("`make shell`, in another terminal, opens a shell beside it, with croft set up.");
    println!("Logs are in {}. Ctrl-C ends everything.\n", site.dir().display());
    // The rack asks with SIGTERM, a terminal with SIGINT.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            _ = tokio::signal::ctrl_c() => return Ok(()),
            _ = terminate.recv() => return Ok(()),
            _ = ticks.tick() => {
                site.watch().await?;
                narrator.tell(&site).await?;
            }
        }
    }
}
