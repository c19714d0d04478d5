//! Trees over plain directories of the file system below: the live head and views.
//!
//! Everything is reached from the root directory's descriptor, one name at a time, symlinks not followed; a path is
//! never put together. What the file system below already does right (permissions of new files, ACLs, links, holes,
//! times) is left to it.
//!
//! | file | what is in it |
//! |---|---|
//! | `numbers` | inode numbers |
//! | `table` | how an inode is reached by its number |
//! | `read` | reading; views |
//! | `head` | the live head |
//! | `make` | making inodes |
//! | `file` | open files |
//! | `errors` | errnos as errors |

mod errors;
mod file;
mod head;
mod make;
mod numbers;
mod read;
mod table;
#[cfg(test)]
mod tests;

pub(crate) use head::{Instance, LiveHead};
pub(crate) use read::ViewTree;
pub(crate) use table::Table;
