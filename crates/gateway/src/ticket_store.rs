//! `TicketStore`: the tickets of the deployment, which are in Redis.

use std::{future::Future, pin::Pin, time::Duration};

use access::{Denied, Grant, MainRuntime, Patterns, TicketLookup};
use broker::{EncodedTicket, NotIssued, Ticket, TicketChannels, Tickets, throttled};

// A longer subject could be granted, and then not be revoked.
const _: () = assert!(access::MAX_SUBJECT == broker::MAX_SUBJECT);

/// A handle; cheap to clone.
#[derive(Clone)]
pub(crate) struct TicketStore {
    tickets: Tickets,
    main: MainRuntime,
}

impl TicketStore {
    /// For the runtime that this is called in.
    pub(crate) fn new(tickets: Tickets) -> Self {
        Self {
            tickets,
            main: MainRuntime::current(),
        }
    }

    /// Keeps a ticket, and returns its name.
    pub(crate) async fn issue(
        &self,
        ticket: EncodedTicket,
        ttl: Duration,
    ) -> Result<String, Denied> {
        let tickets = self.tickets.clone();
        let issue = async move { tickets.issue(&ticket, ttl).await };
        match self.main.run(issue).await {
            Some(Ok(name)) => return Ok(name),
            Some(Err(NotIssued::Random(error))) => {
                throttled!(error, %error, "the system has no random bytes");
            }
            Some(Err(NotIssued::Redis(error))) => {
                throttled!(warn, %error, "failed to keep a ticket")
            }
            None => {}
        }
        Err(Denied::Unavailable)
    }
}

impl TicketLookup for TicketStore {
    fn take(
        &self,
        ticket: String,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, Denied>> + Send + '_>> {
        Box::pin(async move {
            if !Tickets::is_name(&ticket) {
                return Err(Denied::Ticket);
            }
            let tickets = self.tickets.clone();
            let take = async move { tickets.take(&ticket).await };
            match self.main.run(take).await {
                Some(Ok(ticket)) => ticket.map(grant_of).ok_or(Denied::Ticket),
                Some(Err(error)) => {
                    throttled!(warn, %error, "failed to look up a ticket");
                    Err(Denied::Unavailable)
                }
                None => Err(Denied::Unavailable),
            }
        })
    }
}

/// The ticket for a grant. A ticket is for a stream, so it has no permission to publish.
pub(crate) fn ticket_of(grant: Grant) -> Ticket {
    let (names, patterns) = grant.subscribe.into_parts();
    Ticket {
        subject: grant.subject,
        publisher: grant.publisher,
        subscribe: TicketChannels { names, patterns },
        expires: grant.expires,
    }
}

fn grant_of(ticket: Ticket) -> Grant {
    let TicketChannels { names, patterns } = ticket.subscribe;
    Grant {
        subject: ticket.subject,
        publisher: ticket.publisher,
        subscribe: Patterns::from_parts(names, patterns),
        publish: Patterns::default(),
        expires: ticket.expires,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ticket_has_the_permissions_of_its_grant() {
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
        let grant = Grant {
            subject: Some("anna".into()),
            publisher: Some(2),
            subscribe: Patterns::from_parts(texts(&["a*", "!b"]), texts(&["c.*", "!c.d"])),
            publish: Patterns::default(),
            expires: Some(7),
        };
        assert_eq!(grant_of(ticket_of(grant.clone())), grant);
    }
}
