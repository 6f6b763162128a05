bin_PROGRAMS += nbdmirror
nbdmirror_SOURCES = \
	cmd/budget.c \
	cmd/cmd.h \
	cmd/container.c \
	cmd/container.h \
	cmd/control-query.c \
	cmd/control-query.h \
	cmd/completion.c \
	cmd/copy.c \
	cmd/digest.c \
	cmd/help.c \
	cmd/hooks.c \
	cmd/hooks.h \
	cmd/image.c \
	cmd/image.h \
	cmd/main.c \
	cmd/mirror.c \
	cmd/options.c \
	cmd/options.h \
	cmd/pause.c \
	cmd/place.c \
	cmd/rollback.c \
	cmd/set.c \
	cmd/show-forecast.c \
	cmd/show-forecast.h \
	cmd/show-progress.c \
	cmd/show-progress.h \
	cmd/show-status.c \
	cmd/show-status.h \
	cmd/state.c \
	cmd/status.c \
	cmd/units.c \
	cmd/units.h \
	cmd/verify-live.c \
	cmd/verify-meter.c \
	cmd/verify-meter.h \
	cmd/verify.c \
	cmd/verify.h \
	cmd/worker.c \
	cmd/worker.h
nbdmirror_CPPFLAGS = $(AM_CPPFLAGS) \
	-DFILTERDIR='"$(filterdir)"' -DPLUGINDIR='"$(plugindir)"'

nbdmirror_LDADD = libmirror.la libcontrol.la libdirtybitmap.la libbackup.la libbase.la \
	$(JANSSON_LIBS) $(LIBNBD_LIBS)

include cmd/adopt/local.mk
include cmd/tracked/local.mk
include cmd/serve/local.mk
include cmd/receive/local.mk
include cmd/migrate/local.mk
include cmd/evacuate/local.mk
include cmd/complete/local.mk
include cmd/checkpoint/local.mk
include cmd/backup/local.mk
include cmd/far/local.mk
include cmd/repository/local.mk

# Completion for shells is made from the program's own tables of options.  A program of a cross
# compiler does not run here.
if !CROSS
bashcompletiondir = $(datadir)/bash-completion/completions
nodist_bashcompletion_DATA = completions/bash/nbdmirror
zshcompletiondir = $(datadir)/zsh/site-functions
nodist_zshcompletion_DATA = completions/zsh/_nbdmirror
fishcompletiondir = $(datadir)/fish/vendor_completions.d
nodist_fishcompletion_DATA = completions/fish/nbdmirror.fish
completions = $(nodist_bashcompletion_DATA) $(nodist_zshcompletion_DATA) \
	$(nodist_fishcompletion_DATA)
CLEANFILES += $(completions)

$(completions): nbdmirror$(EXEEXT)
	$(AM_V_GEN)$(MKDIR_P) $(@D) && shell=$(@D) && \
	  $(RUN_SANITIZED) ./nbdmirror$(EXEEXT) --print-completion $${shell##*/} >$@.tmp && \
	  mv $@.tmp $@
endif
