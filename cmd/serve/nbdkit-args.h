/* SPDX-License-Identifier: LGPL-2.1-or-later
 *
 * The words that a user adds to an nbdkit command line (`serve … -- NBDKIT-ARGS`), sorted into
 * options, which stand before the plugin's name, and parameters, which stand after it.
 */

#ifndef NBDMIRROR_CMD_SERVE_NBDKIT_ARGS_H
#define NBDMIRROR_CMD_SERVE_NBDKIT_ARGS_H

#include <stdbool.h>

struct nbdkit_args {
  char **options; /* words, borrowed; the arrays are owned */
  unsigned nr_options;
  char **parameters;
  unsigned nr_parameters;
  bool has_filter; /* --filter: something lies between the mirror filter and the plugin */
  bool has_direct; /* mirror-direct= */
  bool has_uri;    /* mirror-uri= */
  bool tls_required;
  bool read_only;
};

/* Sort.  0; or -1 after a usage error: a word that is neither, or one that serve sets itself. */
int nbdkit_args_parse (struct nbdkit_args *a, char **words, unsigned nr);
void nbdkit_args_free (struct nbdkit_args *a);

#endif
