//! The engine through its public face: writes, views, restarts, crashes, damage.

#[cfg(test)]
mod basics;
#[cfg(test)]
mod common;
#[cfg(test)]
mod compact;
#[cfg(test)]
mod crash;
#[cfg(test)]
mod damage;
#[cfg(test)]
mod ddl;
#[cfg(test)]
mod graph;
#[cfg(test)]
mod growing;
#[cfg(test)]
mod model;
#[cfg(test)]
mod offline;
#[cfg(test)]
mod refill;
#[cfg(test)]
mod terms;
