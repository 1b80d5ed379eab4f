//! Tickets: grants for one connection each, valid for a short time, for EventSource, which cannot send headers.

use std::{future::Future, pin::Pin};

use super::{Access, Denied, Grant, now};

/// The store of the tickets that were issued and not used yet.
pub(crate) trait TicketLookup: Send + Sync {
    /// The grant of a ticket. This uses the ticket up.
    ///
    /// # Errors
    /// [`Denied::Ticket`] if there is no such ticket, and [`Denied::Unavailable`] if the store does not answer.
    fn take(
        &self,
        ticket: String,
    ) -> Pin<Box<dyn Future<Output = Result<Grant, Denied>> + Send + '_>>;
}

impl Access {
    /// The grant of a ticket. This uses the ticket up.
    pub(super) async fn take_ticket(&self, ticket: String) -> Result<Grant, Denied> {
        let grant = self.tickets.take(ticket).await?;
        match grant.expires {
            Some(expires) if expires <= now() => Err(Denied::Ticket),
            _ => Ok(grant),
        }
    }
}
