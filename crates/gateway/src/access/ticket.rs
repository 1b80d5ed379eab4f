//! Tickets: grants for one connection each, valid for a short time, for EventSource, which cannot send headers.

use broker::seldom;

use super::{Access, Denied, Grant, now};

/// Bytes that make a ticket unguessable.
const BYTES: usize = 16;

impl Access {
    /// Stores a grant under a new random name.
    pub(crate) async fn issue_ticket(&self, grant: String) -> Result<String, Denied> {
        let mut random = [0; BYTES];
        getrandom::fill(&mut random).map_err(|error| {
            seldom!(error, %error, "the system has no random bytes");
            Denied::Unavailable
        })?;
        let ticket: String = random.iter().map(|byte| format!("{byte:02x}")).collect();
        let (tickets, name, ttl) = (self.tickets.clone(), ticket.clone(), self.ticket_ttl);
        let put = async move { tickets.put(&name, &grant, ttl).await };
        match self.aside.run(put).await {
            Some(Ok(())) => Ok(ticket),
            Some(Err(error)) => {
                seldom!(warn, %error, "a ticket was not kept");
                Err(Denied::Unavailable)
            }
            None => Err(Denied::Unavailable),
        }
    }

    /// The grant of a ticket. This uses the ticket up.
    pub(super) async fn take_ticket(&self, ticket: String) -> Result<Grant, Denied> {
        // Any other text is no ticket, so Redis is not asked for it.
        if ticket.len() != 2 * BYTES || !ticket.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(Denied::Ticket);
        }
        let tickets = self.tickets.clone();
        let take = async move { tickets.take(&ticket).await };
        let grant = match self.aside.run(take).await {
            Some(Ok(grant)) => grant.ok_or(Denied::Ticket)?,
            Some(Err(error)) => {
                seldom!(warn, %error, "failed to look up a ticket");
                return Err(Denied::Unavailable);
            }
            None => return Err(Denied::Unavailable),
        };
        let grant: Grant = serde_json::from_str(&grant).map_err(|error| {
            seldom!(warn, %error, "a ticket that is not in our format");
            Denied::Ticket
        })?;
        match grant.expires {
            Some(expires) if expires <= now() => Err(Denied::Ticket),
            _ => Ok(grant),
        }
    }
}
