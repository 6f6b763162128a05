/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * Queries to the control socket of a disk, and what a status object says.  For one thread at a time
 * each connection.
 */

#ifndef NBDMIRROR_CMD_CONTROL_QUERY_H
#define NBDMIRROR_CMD_CONTROL_QUERY_H

#include <stdbool.h>
#include <jansson.h>

#include "control/client.h"

#define QUERY_MS 10000 /* how long a filter or its worker may take for a short command */

/* Can PATH be a control socket: is it a socket, or missing?  If not it may be an image, or a state
 * file. */
bool query_is_control (const char *path);

/* Connect to CONTROL.  NULL after an error message. */
struct control_client *query_connect (const char *control);
/* The same, with a time limit of its own. */
struct control_client *query_connect_within (const char *control, int timeout_ms);

/* Run one command on an open connection.  Steals ARGS.  Returns 0 with *RET (if not NULL) a new
 * reference; else -1 after an error message that names CONTROL, and *CLASS_ (if not NULL) the
 * error's class, which the caller frees, or NULL. */
int query_call (struct control_client *c, const char *control, const char *name, json_t *args,
                json_t **ret, char **class_);

/* Print MESSAGE, the error text of a query to CONTROL, and name CONTROL if it does not. */
void query_failed (const char *control, const char *message);

/* ---- status objects ------------------------------------------------------------------------- */

/* A number that may be an integer or a real; FALLBACK if it is absent, null or no number. */
double status_number (const json_t *status, const char *key, double fallback);
bool status_has_number (const json_t *status, const char *key);
/* A text (borrowed), or NULL. */
const char *status_text (const json_t *status, const char *key);
/* Is the value JSON's true?  Not if it is absent. */
bool status_is_true (const json_t *status, const char *key);
/* Was the disk handed over?  The job of a backup is `completed` as well, with the gate open. */
bool status_handed_over (const json_t *status);

/* Bytes that are not known to be equal at the destination: dirty + claimed; -1 if unknown. */
double status_left (const json_t *status);
/* 0 to 100, or -1 if unknown.  Never shows 100 while anything is left. */
double status_percent (const json_t *status);

/* Can the file of OPTION be written at PATH in the end?  Hours later it would be too late to learn
 * of a wrong directory.  False after an error message. */
bool report_possible (const char *option, const char *path);

/* A --report: O into the file PATH, ended like a line.  -1: errno. */
int report_write (const char *path, const json_t *o);

#endif
