//! `croft events`

use std::time::Duration;

use croft_proto::api::{Event, EventsRequest};
use croft_proto::{instant, printable};

use crate::args::{Events, Output};
use crate::client::Control;
use crate::fault::Fault;
use crate::print::print_line;
use crate::profile::Profile;
use crate::text::or_dash;

/// Between two attempts to reach control again.
const PAUSE: Duration = Duration::from_secs(1);

/// Prints events. Following goes on through a restart of control, without a gap or a repetition;
/// a control that is not there at the start is a fault.
pub async fn run(profile: &Profile, options: Events, output: Output) -> Result<(), Fault> {
    let mut after = options.after;
    let mut lost = false;
    let mut seen = false;
    loop {
        let ended = stream(profile, options.follow, &mut after, &mut seen, &mut lost, output).await;
        match ended {
            Ok(()) if !options.follow => return Ok(()),
            Err(fault) if !options.follow || !seen || !fault.is_passing() => return Err(fault),
            Ok(()) | Err(_) => {
                if !lost {
                    eprintln!("croft: the connection to control is lost; trying on");
                }
                lost = true;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// One connection's worth of events.
async fn stream(
    profile: &Profile,
    follow: bool,
    after: &mut u64,
    seen: &mut bool,
    lost: &mut bool,
    output: Output,
) -> Result<(), Fault> {
    let mut control = Control::connect(profile).await?;
    let request = EventsRequest { after: *after, follow };
    let outcome = control.api.events(request).await;
    let mut events = control.answer(outcome)?;
    (*seen, *lost) = (true, false);
    while let Some(event) = events.message().await.map_err(|status| control.fault(status))? {
        *after = (*after).max(event.sequence);
        print_line(output, &event, line)?;
    }
    Ok(())
}

/// `TIME  KIND  SUBJECT  TEXT`: a stream has no widest value, so the columns are fixed.
fn line(event: &Event) -> String {
    let subjects = [&event.member, &event.node, &event.farm];
    let subject = subjects.into_iter().find(|name| !name.is_empty());
    let subject = match subject {
        // A member is served by a node: both are worth knowing.
        Some(member) if !event.member.is_empty() && !event.node.is_empty() => {
            format!("{member} ({})", event.node)
        }
        Some(name) => name.clone(),
        None => String::new(),
    };
    let kind = printable(&event.kind, ' ');
    let subject = or_dash(&printable(&subject, ' '));
    let text = printable(&event.text, ' ');
    format!("{}  {kind:18}  {subject:16}  {text}", instant(event.at_ms)).trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_that_names_its_subject() {
        let event = Event {
            sequence: 7,
            at_ms: 1_795_422_601_000,
            kind: "attached".to_owned(),
            node: "n1".to_owned(),
            farm: "shop".to_owned(),
            member: "shop/web/1".to_owned(),
            text: "its agent\nattached".to_owned(),
        };
        assert_eq!(
            line(&event),
            "2026-11-23 08:30:01Z  attached            shop/web/1 (n1)   its agent attached"
        );
        let bare = Event { kind: "started".to_owned(), ..Event::default() };
        assert_eq!(line(&bare), "1970-01-01 00:00:00Z  started             -");
    }
}
