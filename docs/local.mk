# The manual pages.  A tarball carries the pods only; without pod2man there are no pages.

pods = \
	docs/nbdmirror.pod \
	docs/nbdmirror-receive.pod \
	docs/nbdmirror-backup.pod \
	docs/nbdmirror-migrate.pod \
	docs/nbdkit-mirror-filter.pod \
	docs/nbdkit-digest-filter.pod \
	docs/nbdkit-image-plugin.pod \
	docs/nbdmirror-control.pod \
	docs/nbdmirror-repository.pod \
	docs/nbdmirror-state.pod
EXTRA_DIST += $(pods) docs/design.md docs/where.md \
	docs/model/mirror.pml docs/model/synchronous.pml docs/model/state.pml \
	docs/model/run.sh

if HAVE_POD2MAN
man_MANS += \
	docs/nbdmirror.1 \
	docs/nbdmirror-receive.1 \
	docs/nbdmirror-backup.1 \
	docs/nbdmirror-migrate.1 \
	docs/nbdkit-mirror-filter.1 \
	docs/nbdkit-digest-filter.1 \
	docs/nbdkit-image-plugin.1 \
	docs/nbdmirror-control.7 \
	docs/nbdmirror-repository.5 \
	docs/nbdmirror-state.5
CLEANFILES += $(man_MANS)

pod2man_section = $(POD2MAN) --utf8 --errors=die --center="nbdmirror" \
	--release="nbdmirror-$(PACKAGE_VERSION)" --date="2026-11-20"

docs/nbdmirror.1: docs/nbdmirror.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=1 --name=nbdmirror \
	  $(srcdir)/docs/nbdmirror.pod $@.tmp && mv $@.tmp $@
docs/nbdmirror-repository.5: docs/nbdmirror-repository.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=5 --name=nbdmirror-repository \
	  $(srcdir)/docs/nbdmirror-repository.pod $@.tmp && mv $@.tmp $@
docs/nbdmirror-state.5: docs/nbdmirror-state.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=5 --name=nbdmirror-state \
	  $(srcdir)/docs/nbdmirror-state.pod $@.tmp && mv $@.tmp $@
docs/nbdmirror-backup.1: docs/nbdmirror-backup.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=1 --name=nbdmirror-backup \
	  $(srcdir)/docs/nbdmirror-backup.pod $@.tmp && mv $@.tmp $@
docs/nbdmirror-migrate.1: docs/nbdmirror-migrate.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=1 --name=nbdmirror-migrate \
	  $(srcdir)/docs/nbdmirror-migrate.pod $@.tmp && mv $@.tmp $@
docs/nbdmirror-receive.1: docs/nbdmirror-receive.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=1 --name=nbdmirror-receive \
	  $(srcdir)/docs/nbdmirror-receive.pod $@.tmp && mv $@.tmp $@
docs/nbdkit-mirror-filter.1: docs/nbdkit-mirror-filter.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=1 --name=nbdkit-mirror-filter \
	  $(srcdir)/docs/nbdkit-mirror-filter.pod $@.tmp && mv $@.tmp $@
docs/nbdkit-digest-filter.1: docs/nbdkit-digest-filter.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=1 --name=nbdkit-digest-filter \
	  $(srcdir)/docs/nbdkit-digest-filter.pod $@.tmp && mv $@.tmp $@
docs/nbdkit-image-plugin.1: docs/nbdkit-image-plugin.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=1 --name=nbdkit-image-plugin \
	  $(srcdir)/docs/nbdkit-image-plugin.pod $@.tmp && mv $@.tmp $@
docs/nbdmirror-control.7: docs/nbdmirror-control.pod
	$(AM_V_GEN)$(MKDIR_P) docs && $(pod2man_section) --section=7 --name=nbdmirror-control \
	  $(srcdir)/docs/nbdmirror-control.pod $@.tmp && mv $@.tmp $@
endif
