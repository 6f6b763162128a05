/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The exports of the digest filter (nbd-plugin/digest/): what it and the clients that know it
 * (mirror/endpoint/) agree on.
 *
 *   digest@SEED.BLOCK         the digests of the default export
 *   digest@SEED.BLOCK/NAME    the digests of the export NAME
 *
 * SEED is that of struct digest_key in 16 hexadecimal digits (lower case), BLOCK its block size in
 * decimal.  Such an export is read-only.  Its bytes are the digests of the disk's blocks, one after
 * the other, and its description is as below.  The description is how a client tells a server with
 * the filter from one that serves the disk under any name.
 *
 *   digest@base               what the digest of the disk's base image is, where somebody computes
 *   digest@base/NAME          it (digest/whole.h): a text of DIGEST_BASE_SIZE bytes, see below
 */

#ifndef NBDMIRROR_DIGEST_EXPORT_NAME_H
#define NBDMIRROR_DIGEST_EXPORT_NAME_H

#include <inttypes.h>
#include <stdbool.h>

#include "digest/hash.h"

#define DIGEST_PREFIX "digest@"
#define DIGEST_NAME_MAX 32 /* "digest@SEED.BLOCK" and its end, without "/NAME" */

/* The size is that of the disk in bytes. */
#define DIGEST_DESCRIPTION "nbdmirror-digest 1 xxh3-128 size=%" PRIu64 " block=%" PRIu32
#define DIGEST_DESCRIPTION_MAX 96

#define DIGEST_BASE DIGEST_PREFIX "base"
#define DIGEST_BASE_DESCRIPTION "nbdmirror-base 1"
/* The text is one line, followed by zero bytes.  Its first word says how far it is:
 *   computing DONE SIZE     bytes
 *   done DIGEST
 *   failed REASON
 * A second line, "written", follows if the disk may hold something else than its base: it is no new
 * image, or a client has changed it.  Whoever tells the text keeps that as the byte behind it. */
#define DIGEST_BASE_SIZE 512u
#define DIGEST_BASE_WRITTEN "written\n"

/* One request may ask for the digests of so many bytes of the disk. */
#define DIGEST_REQUEST_MAX (64u << 20)

/* Write "digest@SEED.BLOCK". */
void digest_name_format (char name[DIGEST_NAME_MAX], const struct digest_key *key);

/* Does NAME begin as the name of a digest export does? */
bool digest_name_is_ours (const char *name);

/* Is it the one of a base image?  Then *OF is as below. */
bool digest_name_is_base (const char *name, const char **of);

/* Take it apart.  *OF becomes the name of the export that is meant, "" for the default one; it
 * points into NAME.  NULL, or what is wrong with the name (a constant). */
const char *digest_name_parse (const char *name, struct digest_key *key, const char **of);

/* Is TEXT the description of an export with KEY's block size?  Then *SIZE is that of the disk. */
bool digest_description_parse (const char *text, const struct digest_key *key, uint64_t *size);

#endif
